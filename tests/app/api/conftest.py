"""A real server process's worth of HTTP: uvicorn in a thread, on each database."""

import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI

from app.db.keys import create_key
from app.db.session import Database
from app.main import create_app, listen, make_server
from app.settings import Settings
from app.storage import DirectoryStorage, Storage

MAX_FILE_BYTES = 3 << 20
MAX_PART_BYTES = 1 << 20

# Nothing here speaks TLS, but a client takes 30 ms to read the system's certificates unless given others.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True)
class Server:
    """A running service. `client` is the SDK with its own retries; `requests` is what it has sent so far."""

    url: str
    settings: Settings
    database: Database
    storage: Storage
    client: openai.OpenAI
    raw: httpx2.Client
    requests: list[str]

    def http(self, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        """A request that the SDK would not send."""
        return self.raw.request(method, self.url + path, **kwargs)

    def client_of(self, owner: str) -> openai.OpenAI:
        """The SDK with a new key of the tenant `owner`; from the first one on, nothing is open."""
        with self.database.begin() as session:
            _, key = create_key(session, owner)
        return self.client.with_options(api_key=key)

    def blob_names(self) -> list[str]:
        return [blob.name for blob in self.storage.list_blobs()]


@contextmanager
def running(
    database: Database,
    storage: Storage,
    data_dir: Path,
    add_routes: Callable[[FastAPI], None] = lambda app: None,
    **changes: Any,
) -> Iterator[Server]:
    """Serve during the block, with the routes of `add_routes` besides our own and settings in `changes`."""
    limits = {"max_file_bytes": MAX_FILE_BYTES, "max_part_bytes": MAX_PART_BYTES}
    settings = Settings(data_dir=data_dir, **{"port": 0, "model_name": "org/tiny-model"} | limits | changes)
    app = create_app(settings, database, storage)
    add_routes(app)
    requests: list[str] = []
    hooks = {"request": [lambda request: requests.append(f"{request.method} {request.url.path}")]}
    with (
        listening(app, settings) as url,
        httpx2.Client(verify=_TLS, timeout=20) as raw,
        openai.DefaultHttpxClient(verify=_TLS, event_hooks=hooks) as sdk_http,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", http_client=sdk_http)
        yield Server(url, settings, database, storage, client, raw, requests)


@pytest.fixture
def server(database: Database, storage: Storage, tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, on SQLite and on Postgres."""
    with running(database, storage, tmp_path / "data") as server:
        yield server


@pytest.fixture(scope="session")
def shared_server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server on SQLite for all tests that do not mind what else is in it: refusals above all."""
    data_dir = tmp_path_factory.mktemp("shared")
    database = Database(f"sqlite:///{shutil.copy(sqlite_template, data_dir / 'batchllm.db')}")
    with running(database, DirectoryStorage(data_dir), data_dir) as server:
        yield server
    database.dispose()


@contextmanager
def listening(app: FastAPI, settings: Settings) -> Iterator[str]:
    """Serve `app` during the block; yields its address without a slash at the end."""
    with listen(settings) as sock:
        uvicorn_server = make_server(app)
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not uvicorn_server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            uvicorn_server.should_exit = True
            thread.join()
