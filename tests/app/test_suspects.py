"""Lines that end the worker are told apart from their neighbours, on SQLite and Postgres."""

import itertools
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import serve as serve_module
from app.batch_telemetry import Telemetry
from app.db.leases import Claim
from app.db.lines import PendingLine
from app.db.session import Database
from app.heartbeat import Watch
from app.lifecycle import BatchStatus
from app.openai.body import Translated
from app.results import ResultQueue
from app.running import RunningBatch, RunningLine
from app.serve import Supervisor
from app.settings import Settings
from app.storage import Storage
from app.suspects import ALONE_DEATHS, GUILTY_DEATHS, WATCHED_DEATHS, WATCHED_LINES, num_to_admit, urgency
from app.worker import Worker
from engine.request import SamplingParams
from tests.app.batches import CHAT, batch_to_run, chat, lines_of, read_batch, results_of
from tests.app.test_worker import wait_until
from tests.fakes import FakeEngine

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9/readyz"
POISON = "poison"


def _run_till_death(
    deaths: dict[int, int], poison: frozenset[int], num_at_once: int, num_steps: int | None = None
) -> set[int]:
    """One worker's life over the unanswered lines `deaths`: takes out what it answers.

    num_steps: after so many it is killed from outside.
    Returns the lines in the engine when it died; none if it did not.
    """
    waiting = sorted(deaths, key=lambda line: -urgency(deaths[line]))
    in_engine: list[int] = []
    for step_number in itertools.count():
        if not waiting and not in_engine:
            return set()
        next_deaths = [deaths[line] for line in waiting[:WATCHED_LINES]]
        num_not_alone = sum(urgency(deaths[line]) >= 0 for line in waiting)
        num = num_to_admit(next_deaths, num_not_alone, [deaths[line] for line in in_engine])
        in_engine += waiting[:num]
        del waiting[:num]
        assert in_engine, "nothing runs"
        if any(deaths[line] >= ALONE_DEATHS for line in in_engine):
            assert len(in_engine) == 1
        if step_number == num_steps:
            return set(in_engine)
        step, in_engine = in_engine[:num_at_once], in_engine[num_at_once:]
        if not poison.isdisjoint(step):
            return {*step, *in_engine}
        for line in step:
            del deaths[line]
    raise AssertionError("unreachable")


def test_a_worker_killed_from_outside_at_random_moments_loses_no_line() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        deaths = dict.fromkeys(range(300), 0)
        for _ in range(10):
            for line in _run_till_death(deaths, frozenset(), num_at_once=4, num_steps=rng.randint(0, 30)):
                deaths[line] += 1
            assert max(deaths.values(), default=0) < GUILTY_DEATHS, f"seed {seed}"


@settings(deadline=None)
@given(
    num_lines=st.integers(1, 400),
    poison=st.frozensets(st.integers(0, 399), max_size=3),
    num_at_once=st.integers(1, 100),
)
def test_only_the_guilty_are_given_up(num_lines: int, poison: frozenset[int], num_at_once: int) -> None:
    poison = frozenset(line for line in poison if line < num_lines)
    deaths = dict.fromkeys(range(num_lines), 0)
    given_up: set[int] = set()
    num_deaths = 0
    while deaths:
        for line in _run_till_death(deaths, poison, num_at_once):
            deaths[line] += 1
        if deaths:
            num_deaths += 1
        if guilty := {line for line, count in deaths.items() if count >= GUILTY_DEATHS}:
            given_up |= guilty
            left = {line: count for line, count in deaths.items() if line not in guilty}
            deaths = {line: count if count > ALONE_DEATHS else 0 for line, count in left.items()}
    assert given_up == poison
    assert num_deaths <= GUILTY_DEATHS * len(poison)


def _running(deaths: int, *, is_direct: bool = False) -> RunningBatch:
    """A claimed batch with two lines that wait, each of so many deaths."""
    claim = Claim("batch", 1, "worker", "ann", CHAT, "key", deaths, 0, 0, 0, is_direct)
    batch = RunningBatch(claim, Watch(claim), ResultQueue(claim), "fp", Telemetry(None))
    asked = Translated("m", (np.zeros(1, dtype=np.int32),), SamplingParams(max_tokens=1))
    batch.waiting = [RunningLine(PendingLine(i, i, str(i), 0, 1, deaths), asked) for i in (2, 1)]
    return batch


def _feed(batch: RunningBatch, *others: RunningBatch) -> bool:
    """Whether its next line may join the engine, which it then does."""
    lines = batch.next_lines()[-1:]
    if not lines or batch.must_wait(lines, others):
        return False
    batch.enter(lines)
    return True


def test_lines_that_run_alone_and_direct_requests_take_turns() -> None:
    suspect = _running(ALONE_DEATHS)
    first, second, third = (_running(0, is_direct=True) for _ in range(3))
    assert _feed(first, suspect)
    assert not _feed(suspect, first)
    assert not _feed(second, suspect, first)  # it would put the suspect off again
    first.unanswered.clear()
    assert not _feed(second, suspect, first)
    assert _feed(suspect, second)
    assert not _feed(second, suspect)
    suspect.unanswered.clear()
    assert _feed(second, suspect)
    assert not _feed(suspect, second)
    second.unanswered.clear()
    assert _feed(suspect, third)
    # Lines with fewer deaths keep nobody waiting.
    assert _feed(_running(WATCHED_DEATHS), _running(0), third)
    assert _feed(third, _running(WATCHED_DEATHS))


def _bodies(num_lines: int, poisonous: Collection[int]) -> list[dict[str, object]]:
    texts = [f"question {number}" for number in range(num_lines)]
    return [chat(text + POISON * (number in poisonous)) for number, text in enumerate(texts)]


def _check(database: Database, batch_id: str, num_lines: int, poisonous: Collection[int]) -> None:
    batch = read_batch(database, batch_id)
    assert (batch.completed, batch.failed) == (num_lines - len(poisonous), len(poisonous))
    results = results_of(database, batch_id)
    assert len(results) == num_lines
    for number in range(num_lines):
        response = results[f"r{number}"]["response"]
        assert response["status_code"] == (500 if number in poisonous else 200)
    for number in poisonous:
        error = results[f"r{number}"]["response"]["body"]["error"]
        assert (error["code"], error["type"]) == ("worker_died", "server_error")
        assert "died 6 times" in error["message"]


def test_a_line_that_breaks_the_engine_is_given_up(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    """As an exception, so that one process can live through all deaths."""
    poisonous = {150, 210}
    batch_id = batch_to_run(database, storage, _bodies(300, poisonous))
    config = Settings(data_dir=tmp_path, model="m", model_name="m")
    in_engine: list[frozenset[int]] = []

    def end() -> None:
        raise RuntimeError("the fake device broke")

    while read_batch(database, batch_id).status == BatchStatus.IN_PROGRESS:
        engine = FakeEngine(per_step=16, poison=POISON.encode(), on_poison=end)
        try:
            Worker(database, storage, config, lambda engine=engine: engine).run(
                threading.Event(), until_idle=True
            )
        except RuntimeError:
            in_engine.append(engine.in_engine)
    _check(database, batch_id, 300, poisonous)
    guilty = {line.id for line in lines_of(database, batch_id) if line.line - 1 in poisonous}
    assert len(in_engine) <= 2 * GUILTY_DEATHS
    assert len(in_engine[0]) > WATCHED_LINES >= len(in_engine[2]) > 1
    alone = Counter(lines for lines in in_engine if len(lines) == 1)
    assert alone == {frozenset({line}): GUILTY_DEATHS - ALONE_DEATHS for line in guilty}
    assert read_batch(database, batch_id).deaths == 0


def test_a_worker_that_is_stopped_makes_no_suspects(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a")] * 300)
    config = Settings(data_dir=tmp_path, model="m", model_name="m")
    for _ in range(3):
        stop = threading.Event()
        engine = FakeEngine(poison=b"a", on_poison=stop.set)
        Worker(database, storage, config, lambda engine=engine: engine).run(stop)
    assert read_batch(database, batch_id).deaths == 0
    done = results_of(database, batch_id).keys()
    assert 0 < len(done) < 300
    for line in lines_of(database, batch_id):
        assert line.attempts == (1 if line.custom_id in done else 0)


WORKER = """
import os, signal, sys
from pathlib import Path
from app.cli import stop_on_signals
from app.settings import Settings
from app.worker_process import run_worker
from tests.fakes import FakeEngine

data_dir, url, log = sys.argv[1:]
settings = Settings(data_dir=data_dir, database_url=url, model="m", model_name="m", lease_seconds=1)
engine = FakeEngine(
    per_step=16,
    run_log=Path(log),
    poison=b"poison",
    on_poison=lambda: os.kill(os.getpid(), signal.SIGKILL),
)
run_worker(settings, lambda: engine, stop_on_signals())
"""


@pytest.mark.long
def test_serve_outlives_a_line_that_kills_the_worker(
    database: Database,
    database_url: str,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve_module, "LONGEST_BACKOFF_SECONDS", 0.5)
    batch_id = batch_to_run(database, storage, _bodies(100, {60}))
    run_log = tmp_path / "runs"
    command = [sys.executable, "-c", WORKER, str(tmp_path / "data"), database_url, str(run_log)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    service = Supervisor({"worker": command}, environment, ready_url=NOBODY, on_ready=lambda: None)
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: read_batch(database, batch_id).status == BatchStatus.FINALIZING, 120)
        # The service goes on with what comes next.
        next_id = batch_to_run(database, storage, [chat("b")])
        wait_until(lambda: read_batch(database, next_id).status == BatchStatus.FINALIZING)
    finally:
        stop.set()
        thread.join()
    _check(database, batch_id, 100, {60})
