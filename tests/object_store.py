"""A real S3-compatible server, in a process of its own."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

READY_SECONDS = 60


@contextmanager
def serving_s3(bucket: str) -> Iterator[str]:
    """Serve during the block, with an empty bucket; yields the endpoint's URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, "the object store ended"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                request(f"{url}/{bucket}", "PUT")
                break
            assert time.monotonic() < deadline, "the object store does not answer"
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def request(url: str, method: str, body: bytes | None = None) -> None:
    """One request without credentials, past all proxies."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(url, body, {"content-type": "text/plain"}, method=method)
    opener.open(asked, timeout=20).close()


@contextmanager
def asking_for_credentials(url: str) -> Iterator[None]:
    """During the block the server at `url` knows no key, and so denies everything."""
    request(f"{url}/moto-api/reset-auth", "POST", b"0")
    try:
        yield
    finally:
        request(f"{url}/moto-api/reset-auth", "POST", str(2**31).encode())
