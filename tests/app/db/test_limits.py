"""Limits: counted in the database, so that of two at the border one is refused, whoever they ask."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import update

from app.db import uploads
from app.db.files import create_file, delete_file
from app.db.limits import (
    Limits,
    QuotaExceeded,
    check_stored_bytes,
    clear_limits,
    count_request,
    enqueued,
    limits_of,
    list_limits,
    set_limits,
    stored_bytes,
)
from app.db.models import Batch, RequestWindow
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.settings import Settings
from tests.app.db.jobs import set_columns, start_batch

MANY = 8


def at_once(number: int, call: Callable[[], bool]) -> list[bool]:
    """What `number` threads got that called at the same moment."""
    barrier = Barrier(number)

    def run() -> bool:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(number) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(number)]]


def store(database: Database, num_bytes: int, limit: int) -> bool:
    try:
        with database.begin() as session:
            create_file(
                session,
                owner="alice",
                purpose="batch",
                filename="in.jsonl",
                num_bytes=num_bytes,
                storage_key=f"{id(session)}-{num_bytes}",
                expires_seconds=None,
            )
            check_stored_bytes(session, "alice", limit)
    except QuotaExceeded:
        return False
    return True


def test_a_tenants_own_limits_come_before_those_of_all(database: Database) -> None:
    settings = Settings(max_stored_bytes=7, max_requests_per_minute=9)
    with database.begin() as session:
        set_limits(session, "alice", {"max_stored_bytes": 1, "max_enqueued_tokens": 2})
        set_limits(session, "alice", {"max_stored_bytes": 3})
        assert limits_of(session, settings, "alice") == Limits(9, 3, 50_000, None, 2)
        assert limits_of(session, settings, "bob") == Limits(9, 7, 50_000, None, None)
        assert [row.owner for row in list_limits(session)] == ["alice"]
        assert clear_limits(session, "alice")
        assert not clear_limits(session, "alice")
        assert limits_of(session, settings, "alice") == limits_of(session, settings, "bob")


def test_requests_of_a_minute_at_once(database: Database) -> None:
    """More than the limit arrive together, in connections of their own: exactly the limit pass."""

    def is_admitted() -> bool:
        with database.begin() as session:
            return not count_request(session, "alice", 5).is_over

    with database.begin() as session:
        first = count_request(session, "bob", 5)
    assert (first.remaining, first.is_over) == (4, False)
    assert 1 <= first.seconds_left <= 60
    if first.seconds_left < 5:
        time.sleep(5)  # a minute that ends between the calls would let more through
    assert at_once(MANY, is_admitted).count(True) == 5
    with database.begin() as session:
        session.execute(update(RequestWindow).values(minute=RequestWindow.minute - 1))
    assert is_admitted()
    with database.read() as session:
        assert session.get_one(RequestWindow, "alice").num_requests == 1


def test_what_is_stored_at_once(database: Database) -> None:
    assert at_once(MANY, lambda: store(database, 10, 45)).count(True) == 4
    with database.read() as session:
        assert stored_bytes(session, "alice") == 40
        assert stored_bytes(session, "bob") == 0
    assert store(database, 5, 45)
    assert not store(database, 1, 45)


def test_what_counts_as_stored(database: Database) -> None:
    tenant = database.of("alice")
    with tenant.begin() as session:
        file = create_file(
            session, purpose="batch", filename="a", num_bytes=100, storage_key="k", expires_seconds=None
        )
        upload = uploads.create_upload(
            session,
            purpose="batch",
            filename="b.jsonl",
            num_bytes=20,
            expires_seconds=60,
            file_expires_seconds=None,
        )

        def add_part(num_bytes: int) -> int:
            key = f"part-{num_bytes}"
            uploads.add_part(session, upload, num_bytes=num_bytes, storage_key=key, spare_bytes=50)
            return stored_bytes(session, "alice")

        assert stored_bytes(session, "alice") == 120
        assert add_part(15) == 120
        assert add_part(17) == 132  # sent twice: more than was declared
        uploads.complete_upload(session, upload, storage_key="whole", default_expires_seconds=60)
        assert stored_bytes(session, "alice") == 120
        delete_file(session, file.id)
        assert stored_bytes(session, "alice") == 20


def test_what_has_ended_is_not_enqueued(database: Database) -> None:
    for num_lines, num_tokens in ((2, 30), (3, 40)):
        set_columns(database, start_batch(database, num_lines), enqueued_tokens=num_tokens, owner="alice")
    with database.begin() as session:
        assert enqueued(session, "alice") == (5, 70)
        assert enqueued(session, "bob") == (0, 0)
        ended = update(Batch).where(Batch.total == 2).values(status=BatchStatus.COMPLETED)
        session.execute(ended)
        assert enqueued(session, "alice") == (3, 40)


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_positive(limit: int) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Settings(max_enqueued_tokens=limit)
