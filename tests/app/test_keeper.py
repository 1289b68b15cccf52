"""The keeper: faults, several of them, orphans, outages."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from app.db.files import delete_file, get_file
from app.db.lines import pending_lines
from app.db.models import Batch
from app.db.session import Database
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import BlobWriter, DirectoryStorage, FileWriter, Storage
from tests.app.db.jobs import read_batch, set_columns
from tests.app.steps import (
    answer,
    cancel,
    claim_one,
    custom_ids,
    files_and_blobs,
    finish,
    submit_good,
    upload,
)

_S = BatchStatus
_PAST = 1_000


class _FaultyWriter(FileWriter):
    steps_left: list[int]

    def _step(self) -> None:
        self.steps_left[0] -= 1
        if self.steps_left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, chunk: bytes) -> None:
        self._step()
        super().write(chunk)

    def commit(self) -> str:
        self._step()
        return super().commit()


class _FaultyStorage(DirectoryStorage):
    """A storage whose disk is full after a number of writes and commits."""

    def __init__(self, data_dir: Path) -> None:
        self.steps_left = [10**9]
        super().__init__(data_dir)

    def create(self) -> BlobWriter:
        writer = _FaultyWriter(self.directory)
        writer.steps_left = self.steps_left
        return writer


@pytest.mark.parametrize("num_steps", range(6))
def test_closing_that_fails_midway_is_done_again(
    database: Database, tmp_path: Path, settings: Settings, num_steps: int
) -> None:
    """Four lines are written and two files committed: wherever that fails, nothing is left behind."""
    storage = _FaultyStorage(tmp_path / "data")
    keeper = Keeper(database, storage, settings)
    batch_id = submit_good(database, storage, 4)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": True, "r2": True, "r3": False, "r4": False})
    finish(database, claim)
    storage.steps_left[0] = num_steps
    with pytest.raises(OSError, match="No space left"):
        keeper.tick()
    assert read_batch(database, batch_id).status == _S.FINALIZING
    assert files_and_blobs(database, storage) == (1, 1)
    storage.steps_left[0] = 6
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert custom_ids(database, storage, batch.output_file_id) == ["r1", "r2"]
    assert custom_ids(database, storage, batch.error_file_id) == ["r3", "r4"]
    assert files_and_blobs(database, storage) == (3, 3)


def test_trouble_with_one_batch_keeps_no_other_waiting(
    database: Database, tmp_path: Path, settings: Settings
) -> None:
    storage = _FaultyStorage(tmp_path / "data")
    keeper = Keeper(database, storage, settings)
    ids = [submit_good(database, storage, 1) for _ in range(2)]
    for age, batch_id in enumerate(reversed(ids)):
        set_columns(database, batch_id, created_at=2_000 - age)
    for _ in ids:
        keeper.tick()
        claim_one(database)
    for batch_id in ids:
        cancel(database, batch_id)
        set_columns(database, batch_id, lease_owner=None)
    storage.steps_left[0] = -1
    with pytest.raises(OSError, match="No space left"):
        keeper.tick()
    storage.steps_left[0] = 2
    with pytest.raises(OSError, match="No space left"):
        keeper.tick()
    assert [read_batch(database, batch_id).status for batch_id in ids] == [_S.CANCELLED, _S.CANCELLING]


def test_a_cancel_while_files_are_written_wins(
    database: Database, tmp_path: Path, settings: Settings
) -> None:
    """The files of the completed batch that never was are removed."""

    class CancellingStorage(DirectoryStorage):
        batch_id: str | None = None

        def create(self) -> BlobWriter:
            if self.batch_id is not None:
                cancel(database, self.batch_id)
            return super().create()

    storage = CancellingStorage(tmp_path / "data")
    keeper = Keeper(database, storage, settings)
    batch_id = submit_good(database, storage, 1)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": True})
    finish(database, claim)
    storage.batch_id = batch_id
    keeper.tick()
    assert read_batch(database, batch_id).status == _S.CANCELLING
    assert files_and_blobs(database, storage) == (1, 1)
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert batch.status == _S.CANCELLED
    assert custom_ids(database, storage, batch.output_file_id) == ["r1"]


def test_two_keepers_do_not_disturb_each_other(
    database: Database, storage: Storage, settings: Settings
) -> None:
    ids = [submit_good(database, storage, 3) for _ in range(4)]
    stop = threading.Event()
    keepers = [Keeper(database, storage, settings) for _ in range(2)]
    threads = [threading.Thread(target=keeper.run, args=(stop,)) for keeper in keepers]
    for thread in threads:
        thread.start()
    while any(read_batch(database, batch_id).status == _S.VALIDATING for batch_id in ids):
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    for batch_id in ids:
        with database.read() as session:
            assert [line.custom_id for line in pending_lines(session, batch_id)] == ["r1", "r2", "r3"]


def _age(tmp_path: Path, name: str) -> None:
    os.utime(tmp_path / "data" / "blobs" / name, (_PAST, _PAST))


def test_the_sweep_removes_old_orphans_only(
    database: Database, storage: Storage, keeper: Keeper, tmp_path: Path
) -> None:
    file_id = upload(database, storage, b"named")
    with database.read() as session:
        file = get_file(session, file_id)
    assert file is not None
    writers = [storage.create() for _ in range(4)]
    old_orphan, young_orphan = (writer.commit() for writer in writers[:2])
    old_upload, young_upload = (f"{writer.key}.tmp" for writer in writers[2:])
    for name in (file.storage_key, old_orphan, old_upload):
        _age(tmp_path, name)
    keeper.sweep()
    left = {blob.name for blob in storage.list_blobs()}
    assert left == {file.storage_key, young_orphan, young_upload}


def test_the_sweep_spares_another_databases_storage(
    database: Database, storage: Storage, keeper: Keeper, tmp_path: Path
) -> None:
    """A new, empty database beside an old storage: a wrong URL must not cost anyone their data."""
    key = storage.create().commit()
    _age(tmp_path, key)
    keeper.sweep()
    assert [blob.name for blob in storage.list_blobs()] == [key]


def test_an_input_is_pinned_until_its_batch_has_ended(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 1)
    keeper.tick()
    cancel(database, batch_id)
    keeper.tick()
    with database.begin() as session:
        key = delete_file(session, session.get_one(Batch, batch_id).input_file_id)
    assert key is not None
    storage.delete(key)
    assert files_and_blobs(database, storage) == (1, 1)


def test_the_keeper_outlives_an_outage_of_the_database(
    database: Database, storage: Storage, settings: Settings
) -> None:
    """Its tables are hidden for a while; then it goes on by itself."""
    batch_id = submit_good(database, storage, 1)
    hide, show = "ALTER TABLE batches RENAME TO hidden", "ALTER TABLE hidden RENAME TO batches"
    stop = threading.Event()
    outage_seen = threading.Event()

    class WatchedKeeper(Keeper):
        def tick(self) -> bool:
            try:
                return super().tick()
            except Exception:
                outage_seen.set()
                raise

    with database.engine.begin() as connection:
        connection.exec_driver_sql(hide)
    thread = threading.Thread(target=WatchedKeeper(database, storage, settings).run, args=(stop,))
    thread.start()
    assert outage_seen.wait(30)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(show)
    while read_batch(database, batch_id).status != _S.IN_PROGRESS:
        time.sleep(0.01)
    stop.set()
    thread.join()
