"""The service's processes with a fake engine, for benchmarks: started apart, so that each can be measured."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
READY_SECONDS = 60
STOP_SECONDS = 30
MODEL = "m"


class Processes:
    """keeper, api and a worker with `tests/fake_worker.py`'s engine, during a `with` block.

    settings: by name in capitals, such as MAX_REQUESTS_PER_BATCH. worker_options: of tests.fake_worker.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, object] = {}, worker_options: Sequence[str] = ()
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        own = {"DATA_DIR": folder, "PORT": self.port, "OPS_PORT": 0, "MODEL": MODEL, "LOG_FORMAT": "json"}
        given = {f"BATCHLLM_{name}": str(value) for name, value in {**own, **settings}.items()}
        self._environment = {**os.environ, **given, "PYTHONPATH": str(ROOT)}
        self._folder = folder
        self._commands = {
            "keeper": ["-m", "app.cli", "keeper", "--supervised"],
            "api": ["-m", "app.cli", "api", "--supervised"],
            "worker": ["-m", "tests.fake_worker", *worker_options],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, command in self._commands.items():
            with self.log_of(name).open("wb") as log:
                # Its standard input is its lifeline: it ends when we do, however that is.
                self._running[name] = subprocess.Popen(
                    [sys.executable, *command],
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def log_of(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def check(self) -> None:
        """Raises RuntimeError with its log if a process has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise RuntimeError(f"the {name} ended: {self.log_of(name).read_text()[-2_000:]}")

    def peak_mib(self) -> dict[str, int]:
        """Most resident memory of each process so far, in MiB."""
        return {name: _peak_mib(process.pid) for name, process in self._running.items()}

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2).close()
                return
            time.sleep(0.05)
        raise TimeoutError(f"the service was not ready within {READY_SECONDS} s")


def _peak_mib(pid: int) -> int:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return int(status["VmHWM"].split()[0]) >> 10


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def input_line(number: int, text: str, max_tokens: int) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
