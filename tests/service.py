"""A real `batchllm serve` for tests: its own data directory and port, processes that can be killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil
from openai import OpenAI

READY_SECONDS = 60
STOP_SECONDS = 30


class Service:
    """Runs until stopped or killed, and can be started again on the same data.

    environment: settings on top of this process's own, such as BATCHLLM_MODEL.
    """

    def __init__(self, data_dir: Path, environment: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        # The children ignore the folder they are started in: this is how they run the code under test.
        own = {
            "BATCHLLM_DATA_DIR": str(data_dir),
            "BATCHLLM_PORT": str(self.port),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        self._environment = {**os.environ, **own, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="unused")

    def start(self) -> None:
        """Start and wait until the service is ready."""
        command = [sys.executable, "-m", "app.cli", "serve"]
        self._process = subprocess.Popen(command, env=self._environment)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"serve ended with {self._process.returncode}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.url}/readyz", timeout=2).close()
                return
            time.sleep(0.05)
        raise TimeoutError(f"serve was not ready within {READY_SECONDS} s")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=STOP_SECONDS)

    def kill(self) -> None:
        """kill -9 of `serve` itself; its children have to notice."""
        assert self._process is not None
        children = self.children()
        self._process.kill()
        self._process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, f"orphans outlive serve: {alive}"

    def kill_worker(self) -> bool:
        """kill -9 of the worker process; False where none runs at this moment."""
        workers = [child for child in self.children() if "worker" in child.cmdline()]
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers)
        return bool(workers)

    def children(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)
