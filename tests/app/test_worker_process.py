"""The worker as a process that is stopped and killed. Its engine is a fake that notes what it runs."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.models import LineResult
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.storage import Storage
from tests.app.batches import batch_to_run, chat, read_batch, results_of

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30.0
NUM_LINES = 300

WORKER = """
import sys
from pathlib import Path
from app.cli import stop_on_signals
from app.settings import Settings
from app.worker_process import run_worker
from tests.fakes import FakeEngine

data_dir, url, log = sys.argv[1:]
settings = Settings(data_dir=data_dir, database_url=url, model="m", model_name="m", lease_seconds=2)
engine = FakeEngine(step_seconds=0.02, per_step=2, run_log=Path(log))
run_worker(settings, lambda: engine, stop_on_signals())
"""


class WorkerProcess:
    def __init__(self, data_dir: Path, url: str, run_log: Path) -> None:
        command = [sys.executable, "-c", WORKER, str(data_dir), url, str(run_log)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def send(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_SECONDS)


@pytest.fixture
def data_dir(tmp_path: Path, storage: Storage) -> Path:
    return tmp_path / "data"  # where `storage` keeps its blobs


def wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def runs_of(run_log: Path) -> Counter[int]:
    return Counter(map(int, run_log.read_text().split())) if run_log.exists() else Counter()


def test_sigterm_flushes_and_ends_with_zero(
    database: Database, database_url: str, storage: Storage, data_dir: Path, tmp_path: Path
) -> None:
    run_log = tmp_path / "runs"
    batch_id = batch_to_run(database, storage, [chat("a")] * NUM_LINES)
    worker = WorkerProcess(data_dir, database_url, run_log)
    wait_until(lambda: runs_of(run_log).total() > 20)
    assert worker.send(signal.SIGTERM) == 0
    batch = read_batch(database, batch_id)
    assert batch.lease_owner is None
    assert batch.completed == len(results_of(database, batch_id)) == runs_of(run_log).total() < NUM_LINES


def test_kills_lose_nothing_and_redo_nothing_that_was_committed(
    database: Database, database_url: str, storage: Storage, data_dir: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    bodies = [chat("a", temperature=9 if i % 50 == 3 else 1) for i in range(NUM_LINES)]
    batch_id = batch_to_run(database, storage, bodies)
    for kill in range(3):
        run_log = tmp_path / f"runs{kill}"
        committed = committed_lines(database)
        worker = WorkerProcess(data_dir, database_url, run_log)
        wait_until(lambda log=run_log: runs_of(log))
        time.sleep(rng.uniform(0.05, 0.6))
        worker.send(signal.SIGKILL)
        assert not committed & runs_of(run_log).keys()
    committed, run_log = committed_lines(database), tmp_path / "last"
    assert 0 < len(committed) < NUM_LINES
    worker = WorkerProcess(data_dir, database_url, run_log)
    wait_until(lambda: read_batch(database, batch_id).status == BatchStatus.FINALIZING)
    assert worker.send(signal.SIGTERM) == 0
    assert not committed & runs_of(run_log).keys()
    results = results_of(database, batch_id)
    batch = read_batch(database, batch_id)
    assert len(results) == NUM_LINES
    assert (batch.completed, batch.failed) == (NUM_LINES - 6, 6)
    output_tokens = sum(
        result["response"]["body"]["usage"]["completion_tokens"]
        for result in results.values()
        if result["response"]["status_code"] == 200
    )
    assert batch.output_tokens == output_tokens


def committed_lines(database: Database) -> set[int]:
    with database.read() as session:
        return set(session.scalars(select(LineResult.request_line_id)))


@pytest.mark.long
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_worker_that_stalls_and_comes_back_cannot_write(
    database: Database, database_url: str, storage: Storage, data_dir: Path, tmp_path: Path
) -> None:
    run_logs = [tmp_path / "first", tmp_path / "second"]
    batch_id = batch_to_run(database, storage, [chat("a")] * NUM_LINES)
    first = WorkerProcess(data_dir, database_url, run_logs[0])
    wait_until(lambda: committed_lines(database))
    first.process.send_signal(signal.SIGSTOP)
    num_started = runs_of(run_logs[0]).total()
    committed = committed_lines(database)
    second = WorkerProcess(data_dir, database_url, run_logs[1])
    wait_until(lambda: runs_of(run_logs[1]))  # its lease has run out
    first.process.send_signal(signal.SIGCONT)  # while the second runs the very lines that the first holds
    wait_until(lambda: read_batch(database, batch_id).status == BatchStatus.FINALIZING)
    assert first.send(signal.SIGTERM) == 0
    assert second.send(signal.SIGTERM) == 0
    assert not committed & runs_of(run_logs[1]).keys()
    assert runs_of(run_logs[0]).total() < NUM_LINES
    assert num_started <= runs_of(run_logs[0]).total()
    batch = read_batch(database, batch_id)
    assert batch.epoch == 2
    assert (batch.completed, batch.failed) == (NUM_LINES, 0)
    with database.read() as session:
        by_second = set(session.scalars(select(LineResult.request_line_id))) - committed
    assert by_second == set(runs_of(run_logs[1]))
