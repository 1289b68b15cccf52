"""A receiver of webhooks as a process of its own, on the standard library alone."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PROGRAM = """
import http.server, json, sys

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answers = json.load(open(sys.argv[1] + "/answers"))
        status = answers.pop(0) if answers else 200
        json.dump(answers, open(sys.argv[1] + "/answers", "w"))
        with open(sys.argv[1] + "/received", "a") as notes:
            print(json.dumps([self.path, dict(self.headers), body.decode()]), file=notes, flush=True)
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Received:
    """A request. Header names are lower case."""

    path: str
    headers: Mapping[str, str]
    body: str


class Receiver:
    """Answers with `answers`, one after the other, then with 200."""

    def __init__(self, directory: Path, answers: list[int]) -> None:
        directory.mkdir()
        self._received = directory / "received"
        (directory / "answers").write_text(json.dumps(answers))
        command = [sys.executable, "-c", _PROGRAM, str(directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def received(self) -> list[Received]:
        lines = self._received.read_text().splitlines() if self._received.exists() else []
        requests = [json.loads(line) for line in lines]
        return [
            Received(path, {name.lower(): value for name, value in headers.items()}, body)
            for path, headers, body in requests
        ]
