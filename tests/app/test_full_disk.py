"""A disk without space, a real one: nothing finished is lost, the log says why, and all goes on by itself."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.db.session import Database
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import DirectoryStorage, Storage
from app.worker import Worker
from tests.app.batches import batch_to_run, chat, read_batch, results_of
from tests.app.steps import answer, claim_one, custom_ids, files_and_blobs, finish, submit_good
from tests.disk import CannotMount, SmallDisk, mounted
from tests.fakes import FakeEngine

PATIENCE_SECONDS = 60.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with mounted(tmp_path / "small", megabytes=6) as disk:
            yield disk
    except CannotMount as error:
        pytest.skip(f"no file system can be mounted here: {error}")


@contextmanager
def in_a_thread(run: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def test_results_wait_for_space_in_the_database(
    small_disk: SmallDisk, sqlite_template: Path, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk.path / "batchllm.db"
    shutil.copy(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    batch_id = batch_to_run(database, storage, [chat(f"question {n}") for n in range(400)])
    settings = Settings(data_dir=small_disk.path, model="m", model_name="m")
    engine = FakeEngine(step_seconds=0.01)
    with in_a_thread(Worker(database, storage, settings, lambda: engine).run):
        wait_until(lambda: read_batch(database, batch_id).completed)
        small_disk.fill()
        wait_until(lambda: "results wait in memory. The database's disk is full" in caplog.text)
        wait_until(lambda: engine.starts.total() == 400)  # it computes on
        assert read_batch(database, batch_id).completed < 400
        small_disk.free()
        wait_until(lambda: read_batch(database, batch_id).status == BatchStatus.FINALIZING)
    assert len(results_of(database, batch_id)) == 400
    assert set(engine.starts.values()) == {1}
    database.dispose()


def test_output_files_wait_for_space_in_the_storage(
    database: Database, small_disk: SmallDisk, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    storage = DirectoryStorage(small_disk.path)
    keeper = Keeper(database, storage, settings)
    batch_id = submit_good(database, storage, 3)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": True, "r2": False, "r3": True})
    finish(database, claim)
    small_disk.fill()
    with caplog.at_level(logging.INFO), in_a_thread(keeper.run):
        wait_until(lambda: caplog.text.count("The storage's disk is full") >= 2)
        assert read_batch(database, batch_id).status == BatchStatus.FINALIZING
        assert files_and_blobs(database, storage) == (1, 1)  # nothing half written stays
        small_disk.free()
        wait_until(lambda: read_batch(database, batch_id).status == BatchStatus.COMPLETED)
    batch = read_batch(database, batch_id)
    assert custom_ids(database, storage, batch.output_file_id) == ["r1", "r3"]
    assert custom_ids(database, storage, batch.error_file_id) == ["r2"]
    assert "Traceback" not in caplog.text


def test_the_small_disk_is_small(small_disk: SmallDisk) -> None:
    small_disk.fill()
    with pytest.raises(OSError, match=os.strerror(28)), (small_disk.path / "more").open("wb") as file:
        file.write(b"x")
    small_disk.free()
    (small_disk.path / "more").write_bytes(b"x")
