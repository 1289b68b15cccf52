"""What is past its time: out of reach at once, removed by the keeper, kept while a batch needs it."""

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from app import housekeeping
from app.batch_input import InputLine
from app.db.batches import transition
from app.db.direct import add_direct
from app.db.files import create_file, get_file, list_files, live_file
from app.db.idempotency import RequestKey, create_once
from app.db.models import Batch, File, IdempotencyKey, LineResult, RequestLine, WebhookDelivery
from app.db.session import Database, now
from app.db.webhooks import create_endpoint
from app.housekeeping import remove_expired
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import Storage
from tests.app.db.jobs import CHAT, add_batch, read_batch, set_columns
from tests.app.db.test_uploads import age, begin, status_of
from tests.app.steps import answer, claim_one, custom_ids, finish, request, submit_good, upload

_S = BatchStatus


def expire(database: Database, *file_ids: str) -> None:
    with database.begin() as session:
        session.execute(update(File).where(File.id.in_(file_ids)).values(expires_at=1_000))


def store(storage: Storage) -> str:
    with storage.create() as writer:
        writer.write(b"{}")
        return writer.commit()


def num_blobs(storage: Storage) -> int:
    return len(list(storage.list_blobs()))


def is_there(database: Database, file_id: str | None) -> bool:
    with database.read() as session:
        return get_file(session, file_id or "") is not None


def test_expired_files_go_with_their_blobs(database: Database, storage: Storage, settings: Settings) -> None:
    kept, *old = (upload(database, storage, b"{}") for _ in range(3))
    expire(database, *old)
    with database.read() as session:
        assert [file.id for file in list_files(session, after=None, limit=9, order="asc")[0]] == [kept]
        assert live_file(session, old[0]) is None
        assert live_file(session, kept) is not None
    assert remove_expired(database, storage, settings) == 2
    assert remove_expired(database, storage, settings) == 0
    assert [is_there(database, file_id) for file_id in (kept, *old)] == [True, False, False]
    assert num_blobs(storage) == 1


def test_more_than_one_transaction_s_worth(database: Database, storage: Storage, settings: Settings) -> None:
    with database.begin() as session:
        for number in range(205):
            create_file(
                session,
                purpose="batch",
                filename="f",
                num_bytes=1,
                storage_key=f"{number:032x}",
                expires_seconds=-1,
            )
    assert remove_expired(database, storage, settings) == 205


def test_the_input_of_a_live_batch_stays_until_it_ends(
    database: Database, storage: Storage, keeper: Keeper, settings: Settings
) -> None:
    batch_id = submit_good(database, storage, 2)
    input_id = read_batch(database, batch_id).input_file_id
    with database.begin() as session:  # its time is up after the batch was made, before it is validated
        session.get_one(File, input_id).expires_at = read_batch(database, batch_id).created_at + 1
    time.sleep(1.1)
    assert remove_expired(database, storage, settings) == 0
    keeper.tick()
    claim = claim_one(database)
    assert remove_expired(database, storage, settings) == 0
    answer(database, claim, {"r1": True, "r2": True})
    finish(database, claim)
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert batch.status == _S.COMPLETED
    assert custom_ids(database, storage, batch.output_file_id) == ["r1", "r2"]
    keeper.tidy()
    assert not is_there(database, input_id)
    assert is_there(database, batch.output_file_id)
    assert num_blobs(storage) == 1


def test_an_input_that_had_expired_before_the_batch_was_made(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    file_id = upload(database, storage, request("r1"))
    expire(database, file_id)
    with database.begin() as session:
        batch_id = add_batch(session, file_id).id
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert batch.status == _S.FAILED
    assert batch.errors is not None
    assert batch.errors[0]["message"].startswith(f"Cannot find file {file_id}")


@pytest.mark.parametrize("seconds", [None, 3_600])
def test_output_files_live_as_long_as_the_batch_says(
    database: Database, storage: Storage, keeper: Keeper, seconds: int | None
) -> None:
    batch_id = submit_good(database, storage, 2)
    set_columns(database, batch_id, output_expires_seconds=seconds)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": True, "r2": False})
    finish(database, claim)
    keeper.tick()
    batch = read_batch(database, batch_id)
    for file_id in (batch.output_file_id, batch.error_file_id):
        with database.read() as session:
            file = session.get_one(File, file_id)
        assert file.expires_at == file.created_at + (seconds or 30 * 86_400)
        expire(database, file.id)
    keeper.tidy()
    assert not is_there(database, batch.output_file_id)
    assert not is_there(database, batch.error_file_id)
    assert num_blobs(storage) == 1  # the input


def test_parts_of_late_uploads_go(database: Database, storage: Storage, settings: Settings) -> None:
    late, in_time = (begin(database, store(storage), store(storage)) for _ in range(2))
    age(database, late, 3_600)
    assert remove_expired(database, storage, settings) == 2
    assert num_blobs(storage) == 2
    assert (status_of(database, late), status_of(database, in_time)) == ("expired", "pending")


def test_a_sweep_leaves_parts_alone(
    database: Database, storage: Storage, keeper: Keeper, tmp_path: Path
) -> None:
    key = store(storage)
    begin(database, key)
    upload(database, storage, b"{}")
    for path in (tmp_path / "data" / "blobs").iterdir():
        os.utime(path, (1_000, 1_000))
    keeper.sweep()
    assert num_blobs(storage) == 2


def test_tidying_that_fails_holds_up_no_batch(
    database: Database, storage: Storage, keeper: Keeper, tmp_path: Path
) -> None:
    """A directory in the place of a blob cannot be deleted."""
    file_id = upload(database, storage, b"{}")
    expire(database, file_id)
    for path in (tmp_path / "data" / "blobs").iterdir():
        path.unlink()
        path.mkdir()
    batch_id = submit_good(database, storage, 1)
    stop = threading.Event()
    thread = threading.Thread(target=keeper.run, args=[stop])
    thread.start()
    deadline = time.monotonic() + 20
    while read_batch(database, batch_id).status == _S.VALIDATING and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert read_batch(database, batch_id).status == _S.IN_PROGRESS


def test_a_running_keeper_does_it(database: Database, storage: Storage, keeper: Keeper) -> None:
    expire(database, upload(database, storage, b"{}"))
    stop = threading.Event()
    thread = threading.Thread(target=keeper.run, args=[stop])
    thread.start()
    deadline = time.monotonic() + 20
    while num_blobs(storage) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert num_blobs(storage) == 0


def num_rows(database: Database) -> list[int]:
    """Of batches, of their lines, and of the results."""
    with database.read() as session:
        tables = (Batch, RequestLine, LineResult)
        return [session.scalars(select(func.count()).select_from(table)).one() for table in tables]


def run_to_the_end(database: Database, storage: Storage, keeper: Keeper, num_lines: int) -> str:
    batch_id = submit_good(database, storage, num_lines)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {f"r{n}": n > 1 for n in range(1, num_lines + 1)})
    finish(database, claim)
    keeper.tick()
    return batch_id


def test_batches_go_with_their_lines_when_they_have_been_over_for_long(
    database: Database, storage: Storage, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_LINES_PER_TRANSACTION", 2)
    old, recent = (run_to_the_end(database, storage, keeper, 5) for _ in range(2))
    running = submit_good(database, storage, 3)
    keeper.tick()
    set_columns(database, old, completed_at=1_000)
    for batch_id in (recent, running):  # age alone is no reason
        set_columns(database, batch_id, created_at=1_000)
    assert num_rows(database) == [3, 13, 10]
    keeper.tidy()
    assert num_rows(database) == [2, 8, 5]
    assert {read_batch(database, batch_id).status for batch_id in (recent, running)} == {
        _S.COMPLETED,
        _S.IN_PROGRESS,
    }
    assert num_blobs(storage) == 7  # files have a time of their own


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
def test_the_retention_counts_from_the_end(
    database: Database, storage: Storage, keeper: Keeper, settings: Settings, status: str
) -> None:
    ids = [submit_good(database, storage, 1) for _ in range(2)]
    with database.read() as session:
        moment = now(session)
    for batch_id, seconds in zip(ids, (-5, 60), strict=True):
        ended_at = moment - settings.batch_retention_seconds + seconds
        set_columns(database, batch_id, status=status, created_at=1_000, **{f"{status}_at": ended_at})
    keeper.tidy()
    with database.read() as session:
        assert list(session.scalars(select(Batch.id))) == ids[1:]


def test_direct_requests_that_a_killed_api_left_are_removed(
    database: Database, storage: Storage, settings: Settings
) -> None:
    line = InputLine(1, "direct", 0, 1, "m")
    for batch_id, seconds in (("batch_late", 0), ("batch_waited_for", 60)):
        with storage.create() as blob:
            blob.write(b"x")
            key = blob.commit()
        with database.begin() as session:
            add_direct(
                session,
                batch_id,
                owner="ann",
                endpoint=CHAT,
                line=line,
                storage_key=key,
                num_bytes=1,
                seconds=seconds,
            )
    assert remove_expired(database, storage, settings) == 1
    with database.read() as session:
        assert session.scalars(select(Batch.id)).all() == ["batch_waited_for"]
        assert session.scalars(select(RequestLine.batch_id)).all() == ["batch_waited_for"]
        assert session.scalars(select(File.storage_key)).all() == [key]
    assert [blob.name for blob in storage.list_blobs()] == [key]


def test_only_some_batches_at_once(
    database: Database, storage: Storage, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_BATCHES_AT_ONCE", 2)
    for _ in range(3):
        set_columns(database, submit_good(database, storage, 1), status="failed", failed_at=1_000)
    keeper.tidy()
    assert num_rows(database)[0] == 1
    keeper.tidy()
    assert num_rows(database)[0] == 0


def test_keys_and_deliveries_are_forgotten(database: Database, storage: Storage, keeper: Keeper) -> None:
    with database.begin() as session:
        create_endpoint(session, name="hook", url="http://127.0.0.1:9", event_types=["batch.failed"])
        for key in ("old", "new"):
            batch = create_once(
                session,
                RequestKey(key, "digest"),
                find=lambda batch_id: session.get(Batch, batch_id),
                create=lambda: add_batch(session, "file-1"),
            )
            assert transition(session, batch.id, _S.VALIDATING, _S.FAILED)
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(expires_at=1_000))
        session.execute(
            update(WebhookDelivery).where(WebhookDelivery.batch_id == batch.id).values(created_at=1_000)
        )
    keeper.tidy()
    with database.read() as session:
        assert list(session.scalars(select(IdempotencyKey.key))) == ["new"]
        (left,) = session.scalars(select(WebhookDelivery.batch_id))
        assert left != batch.id
