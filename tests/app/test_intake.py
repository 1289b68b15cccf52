"""Batches that join while others run, on SQLite and Postgres."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from app import intake
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import DirectoryStorage, Storage, StorageAway
from app.worker import Worker
from tests.app.batches import batch_to_run, chat, lines_of, read_batch, results_of
from tests.app.db.jobs import set_columns
from tests.app.test_worker import running, wait_until
from tests.fakes import FakeEngine


@pytest.fixture
def make_worker(database: Database, storage: Storage, tmp_path: Path) -> Callable[..., Worker]:
    def make(engine: FakeEngine, **options: object) -> Worker:
        settings = Settings(data_dir=tmp_path, model="m", model_name="m").model_copy(update=options)
        return Worker(database, storage, settings, lambda: engine)

    return make


def _first_ids(database: Database, batch_ids: list[str]) -> list[int]:
    return [lines_of(database, id_)[0].id for id_ in batch_ids]


def test_a_new_batch_joins_while_another_runs(
    database: Database, storage: Storage, make_worker: Callable[..., Worker]
) -> None:
    engine = FakeEngine(step_seconds=0.01, per_step=1)
    first = batch_to_run(database, storage, [chat("a")] * 3000)
    with running(make_worker(engine, claim_tokens=10**6)):
        wait_until(lambda: read_batch(database, first).completed)
        second = batch_to_run(database, storage, [chat("b")] * 3)
        wait_until(lambda: read_batch(database, second).lease_owner)
        assert read_batch(database, first).status == BatchStatus.IN_PROGRESS
        # Behind the first, since it came later.
        assert not results_of(database, second)


def test_a_higher_priority_goes_first_whatever_is_held(
    database: Database, storage: Storage, make_worker: Callable[..., Worker]
) -> None:
    engine = FakeEngine(step_seconds=0.01, per_step=1)
    first = batch_to_run(database, storage, [chat("a")] * 3000)
    with running(make_worker(engine, claim_tokens=1)):
        wait_until(lambda: read_batch(database, first).completed)
        late = batch_to_run(database, storage, [chat("b")] * 3)
        urgent = batch_to_run(database, storage, [chat("c")] * 3)
        set_columns(database, urgent, priority=1)
        wait_until(lambda: read_batch(database, urgent).status == BatchStatus.FINALIZING)
        assert read_batch(database, first).status == BatchStatus.IN_PROGRESS
        assert read_batch(database, late).lease_owner is None  # the budget is used up


def test_batches_are_run_by_priority_then_age(
    database: Database, storage: Storage, make_worker: Callable[..., Worker]
) -> None:
    batch_ids = [batch_to_run(database, storage, [chat("a")] * 2) for _ in range(5)]
    for batch_id, priority in zip(batch_ids, [0, -1, 0, 7, 7], strict=True):
        set_columns(database, batch_id, priority=priority)
    engine = FakeEngine(per_step=1)
    make_worker(engine, claim_tokens=1).run(threading.Event(), until_idle=True)
    started = [line_id for line_id in engine.starts if line_id in _first_ids(database, batch_ids)]
    in_order = [batch_ids[index] for index in (3, 4, 0, 2, 1)]
    assert started == _first_ids(database, in_order)
    assert set(engine.starts.values()) == {1}


def test_only_batches_of_the_workers_models_are_taken(
    database: Database, storage: Storage, make_worker: Callable[..., Worker]
) -> None:
    batch_ids = [batch_to_run(database, storage, [chat("a")]) for _ in range(4)]
    for batch_id, models in zip(batch_ids, [["other"], ["m"], ["m", "other"], None], strict=True):
        set_columns(database, batch_id, models=models)
    make_worker(FakeEngine()).run(threading.Event(), until_idle=True)
    statuses = [read_batch(database, id_).status for id_ in batch_ids]
    waits, done = BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING
    assert statuses == [waits, done, waits, done]


def test_suspects_run_in_no_other_batchs_company(
    database: Database, storage: Storage, make_worker: Callable[..., Worker]
) -> None:
    batch_ids = [batch_to_run(database, storage, [chat("a")] * 4) for _ in range(3)]
    set_columns(database, batch_ids[1], deaths=2)
    seen: list[frozenset[str]] = []
    batch_of = {line.id: id_ for id_ in batch_ids for line in lines_of(database, id_)}

    class Watched(FakeEngine):
        def step(self):  # type: ignore[no-untyped-def]
            seen.append(frozenset(batch_of[request_id] for request_id in self.waiting))
            return super().step()

    worker = make_worker(Watched(per_step=1, step_seconds=0.3), claim_tokens=10**6)
    worker.run(threading.Event(), until_idle=True)
    assert all(read_batch(database, id_).status == BatchStatus.FINALIZING for id_ in batch_ids)
    assert {batch_ids[1]} in seen
    assert all(batch_ids[1] not in together for together in seen if len(together) > 1)


class _ShakyStorage(DirectoryStorage):
    """Away at the first opening, and again after some reads of the second."""

    num_openings = 0

    def open(self, key: str) -> BinaryIO:
        self.num_openings += 1
        if self.num_openings == 1:
            raise StorageAway("not now")
        blob = super().open(key)
        return cast(BinaryIO, _ShakyReader(blob)) if self.num_openings == 2 else blob


class _ShakyReader(io.BufferedReader):
    def __init__(self, blob: BinaryIO) -> None:
        super().__init__(cast(io.RawIOBase, blob))
        self.num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.num_reads += 1
        if self.num_reads == 5:
            raise StorageAway("gone again")
        return super().read(size)


def test_a_storage_that_is_away_is_waited_for(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(intake, "LONGEST_WAIT_SECONDS", 0.01)
    storage = _ShakyStorage(tmp_path / "data")
    batch_id = batch_to_run(database, storage, [chat(f"question {i}") for i in range(10)])
    settings = Settings(data_dir=tmp_path, model="m", model_name="m")
    engine = FakeEngine()
    Worker(database, storage, settings, lambda: engine).run(threading.Event(), until_idle=True)
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.completed, batch.deaths) == (BatchStatus.FINALIZING, 10, 0)
    assert set(engine.starts.values()) == {1}
    assert storage.num_openings == 3
    assert caplog.text.count("The storage does not answer") == 2
