"""The web process as a process: what it loads, where it listens, how it ends."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.main import listen
from app.settings import Settings, StartupError

SERVE = "from app.main import run; from app.settings import load_settings; run(load_settings())"


@contextmanager
def process(data_dir: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"BATCHLLM_DATA_DIR": str(data_dir), "BATCHLLM_PORT": str(port)}
    started = subprocess.Popen([sys.executable, "-c", SERVE], env=environment)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> int:
    """The status of a GET, repeated until something listens there."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        finally:
            connection.close()


def test_the_web_process_loads_no_model_code() -> None:
    code = "import app.main, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "transformers", "tokenizers", "triton", "numpy", "engine", "kernels", "typer"}
    assert heavy.isdisjoint(loaded)
    assert not [name for name in loaded if name.startswith(("engine.", "app.openai", "app.worker"))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_alone_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with process(tmp_path / "data", port) as started:
        assert get(port, "/healthz") == 200
        assert get(port, "/readyz") == 503  # no keeper has migrated
        started.send_signal(number)
        assert started.wait(timeout=30) == 0


def test_a_running_upload_ends_before_the_process_does(tmp_path: Path, sqlite_template: Path) -> None:
    port = free_port()
    (tmp_path / "data").mkdir()
    shutil.copy(sqlite_template, tmp_path / "data" / "batchllm.db")
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\n\r\n--b--\r\n'
    )
    with process(tmp_path / "data", port) as started:
        assert get(port, "/healthz") == 200
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", "/v1/files")
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.putheader("Content-Length", str(len(form)))
        connection.endheaders(form[:100])
        wait_for_a_blob(tmp_path / "data" / "blobs")
        started.send_signal(signal.SIGTERM)
        connection.send(form[100:])
        assert connection.getresponse().status == 200
        connection.close()
        assert started.wait(timeout=30) == 0
    assert len(list((tmp_path / "data" / "blobs").iterdir())) == 1


def wait_for_a_blob(directory: Path) -> None:
    deadline = time.monotonic() + 30
    while not list(directory.glob("*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_other_machines_are_kept_out_unless_allowed(host: str) -> None:
    with pytest.raises(StartupError, match="--allow-remote"):
        listen(Settings(host=host, port=0))


def test_other_machines_can_be_allowed() -> None:
    with listen(Settings(host="0.0.0.0", port=0, allow_remote=True)) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_a_body_does_not_wait_for_an_acknowledgement() -> None:
    """40 ms for every request but the first of a connection, where Nagle's algorithm is at work."""
    with listen(Settings(port=0)) as sock, socket.create_connection(sock.getsockname()):
        connection, _ = sock.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_one_sentence() -> None:
    with listen(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"Port {port} on 127.0.0.1 is in use"):
            listen(Settings(port=port))


def test_an_address_of_another_machine_is_one_sentence() -> None:
    for host in ("192.0.2.1", "example.invalid"):
        with pytest.raises(StartupError, match=f"Cannot listen on {host}"):
            listen(Settings(host=host, port=0, allow_remote=True))
