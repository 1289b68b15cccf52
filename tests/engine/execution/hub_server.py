"""A model hub of one model, served from a directory: what a download asks of a hub, and no more."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


@contextmanager
def serve_hub(model_id: str, model_dir: Path, *, stall: bool = False) -> Iterator[str]:
    """The URL of a hub; `stall`: it answers questions, but files never arrive."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            api, files = f"/api/models/{model_id}", f"/{model_id}/resolve/{COMMIT}/"
            if path == f"{api}/revision/main":
                self.send(json.dumps({"id": model_id, "sha": COMMIT, "siblings": []}).encode(), with_body)
            elif path == f"{api}/tree/{COMMIT}":
                self.send(json.dumps([entry(file) for file in model_dir.iterdir()]).encode(), with_body)
            elif path.startswith(files):
                if stall and with_body:
                    time.sleep(60)
                self.send((model_dir / path.removeprefix(files)).read_bytes(), with_body)
            else:
                self.send_error(404)

        def send(self, body: bytes, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    def entry(file: Path) -> dict[str, object]:
        return {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
