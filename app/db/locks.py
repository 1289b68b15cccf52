"""Locks between processes that die with their holder: a file's beside SQLite, an advisory one on Postgres."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from sqlalchemy import func, select

from app.db.session import Database


@contextmanager
def try_lock(database: Database, name: str) -> Iterator[bool]:
    """Hold this database's lock `name` during the block; yields False, without waiting, if it is taken."""
    with _file_lock(database, name) if database.is_sqlite else _advisory_lock(database, name) as held:
        yield held


@contextmanager
def _file_lock(database: Database, name: str) -> Iterator[bool]:
    lock = FileLock(f"{database.url.database}.{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _advisory_lock(database: Database, name: str) -> Iterator[bool]:
    """Held by a connection of its own: the server lets go of it when the connection ends."""
    key = lock_key(name)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        held = bool(connection.scalar(select(func.pg_try_advisory_lock(key))))
        try:
            yield held
        finally:
            if held:
                connection.execute(select(func.pg_advisory_unlock(key)))


def lock_key(name: str) -> int:
    """A signed 64-bit key for an advisory lock of Postgres."""
    digest = hashlib.sha256(f"batchllm:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
