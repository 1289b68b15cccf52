"""What is past its time: out of reach at once, removed by the keeper, kept while a batch needs it."""

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.files import create_file, get_file, list_files, live_file
from app.db.models import File
from app.db.session import Database
from app.housekeeping import remove_expired
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.storage import Storage
from tests.app.db.jobs import add_batch, read_batch, set_columns
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


def test_expired_files_go_with_their_blobs(database: Database, storage: Storage) -> None:
    kept, *old = (upload(database, storage, b"{}") for _ in range(3))
    expire(database, *old)
    with database.read() as session:
        assert [file.id for file in list_files(session, after=None, limit=9, order="asc")[0]] == [kept]
        assert live_file(session, old[0]) is None
        assert live_file(session, kept) is not None
    assert remove_expired(database, storage) == 2
    assert remove_expired(database, storage) == 0
    assert [is_there(database, file_id) for file_id in (kept, *old)] == [True, False, False]
    assert num_blobs(storage) == 1


def test_more_than_one_transaction_s_worth(database: Database, storage: Storage) -> None:
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
    assert remove_expired(database, storage) == 205


def test_the_input_of_a_live_batch_stays_until_it_ends(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 2)
    input_id = read_batch(database, batch_id).input_file_id
    with database.begin() as session:  # its time is up after the batch was made, before it is validated
        session.get_one(File, input_id).expires_at = read_batch(database, batch_id).created_at + 1
    time.sleep(1.1)
    assert remove_expired(database, storage) == 0
    keeper.tick()
    claim = claim_one(database)
    assert remove_expired(database, storage) == 0
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


def test_parts_of_late_uploads_go(database: Database, storage: Storage) -> None:
    late, in_time = (begin(database, store(storage), store(storage)) for _ in range(2))
    age(database, late, 3_600)
    assert remove_expired(database, storage) == 2
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
