"""Connections, URLs, the clock."""

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from app.db.session import Database, now
from app.settings import StartupError
from tests.app.db.jobs import add_batch, read_batch


def test_now_is_whole_unix_seconds(database: Database) -> None:
    with database.read() as session:
        moment = now(session)
    assert isinstance(moment, int)
    assert abs(moment - time.time()) < 5


def test_an_exception_rolls_back(database: Database) -> None:
    def fail_halfway() -> None:
        with database.begin() as session:
            add_batch(session, "file-1")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM batches")) == 0


def test_sqlite_is_set_up_for_many_processes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.read() as session:
        pragmas = ["journal_mode", "synchronous", "foreign_keys", "busy_timeout"]
        values = [session.scalar(text(f"PRAGMA {name}")) for name in pragmas]
    assert values == ["wal", 2, 1, 60_000]
    database.dispose()


def test_writers_wait_for_each_other(database: Database) -> None:
    """Each reads, then writes that plus one: with a transaction that begins as a reader this fails."""
    with database.begin() as session:
        batch_id = add_batch(session, "file-1").id

    def count_up() -> None:
        for _ in range(20):
            with database.begin() as session:
                lock = "" if database.is_sqlite else " FOR UPDATE"
                row = {"id": batch_id}
                value = session.scalar(text(f"SELECT total FROM batches WHERE id = :id{lock}"), row)
                session.execute(text("UPDATE batches SET total = :n WHERE id = :id"), row | {"n": value + 1})

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_batch(database, batch_id).total == 80


@pytest.mark.parametrize(
    "url", ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"]
)
def test_forms_of_a_postgres_url(url: str) -> None:
    database = Database(url)
    assert database.url.drivername == "postgresql+psycopg"
    assert "p@" not in str(database).replace("***", "")


@pytest.mark.parametrize("url", ["nonsense", "mysql://h/d", "sqlite://", "postgresql://h:port/d", ""])
def test_a_url_that_cannot_work_is_one_sentence(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        Database(url)
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be created"):
        Database(f"sqlite:///{tmp_path}/file/below/a.db")
