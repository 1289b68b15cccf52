"""What a worker tells of a run: bounded series, an outline written once, both stored beside the steps."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from app import heartbeat as heartbeat_module
from app.batch_telemetry import MAX_POINTS, Meter, Point, Series, Telemetry
from app.db.leases import LeaseLost
from app.db.telemetry import get_telemetry, save_telemetry
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from engine.stats import EngineStats
from tests.app.batches import batch_to_run, chat, read_batch
from tests.app.steps import claim_one
from tests.fakes import FakeEngine


@given(
    st.lists(st.tuples(st.floats(0.5, 3), st.sampled_from([0, 0, 0, 60]), st.integers(0, 999)), max_size=700)
)
def test_a_series_is_bounded_and_loses_no_step(looks):
    series, at, tokens = Series(), 1_000.0, 0
    for seconds, gap, kv_tokens in looks:
        at += gap
        series.add(Point(at, seconds, 1, 10, kv_tokens, kv_tokens // 2))
        at += seconds
        tokens += 10
    assert len(series.points) <= MAX_POINTS
    # Only where pauses alone make too many points does the oldest go.
    if sum(gap > 0 for _, gap, _ in looks) < MAX_POINTS // 2:
        assert sum(point.tokens for point in series.points) == tokens
        assert max((p.kv_tokens for p in series.points), default=0) == max((k for *_, k in looks), default=0)
    for first, second in zip(series.points, series.points[1:], strict=False):
        assert first.at + first.seconds <= second.at + 1e-6
    again = Series([list(point) for point in series.points], series.interval_seconds)
    assert again.points == series.points


def test_a_meter_tells_what_happened_between_two_looks():
    stats, clock = EngineStats(), iter([100.0, 101.0, 103.0, 110.0, 111.0])
    meter = Meter(stats, lambda: next(clock))
    assert meter.look(stats) is None
    stats.steps, stats.computed_tokens, stats.kv_tokens, stats.shared_kv_tokens = 4, 400, 64, 32
    assert meter.look(stats) == Point(101.0, 2.0, 4, 400, 64, 32)
    meter.skip(stats)
    assert meter.look(stats) is None


def run_worker(database, storage, settings, bodies, **engine):
    batch_id = batch_to_run(database, storage, bodies)
    Worker(database, storage, settings, lambda: FakeEngine(**engine)).run(threading.Event(), until_idle=True)
    with database.read() as session:
        return batch_id, get_telemetry(session, batch_id)


def test_a_run_leaves_outline_and_series(database, storage: Storage, settings: Settings) -> None:
    prompts = [f"one instruction for all, and then\0 question {n}" for n in range(9)]
    _, told = run_worker(database, storage, settings, [chat(prompt) for prompt in prompts])
    assert told is not None
    (prefix,) = told.outline["prefixes"]
    assert prefix["num_requests"] == told.outline["num_requests"] == 9
    assert "<user>one instruction" in prefix["text"]
    assert prefix["examples"] == [f"r{n}" for n in range(5)]
    points = told.series["points"]
    assert sum(point[2] for point in points) == 3  # steps
    assert told.series["kv_capacity_tokens"] == 10_000
    assert max(point[4] for point in points) > 0


def test_nobody_draws_an_outline_of_lines_that_do_not_enter_together(database, storage, settings) -> None:
    batch_id = batch_to_run(database, storage, [chat(f"an instruction; question {n}") for n in range(6)])
    with database.begin() as session:
        session.execute(text("UPDATE request_lines SET attempts = 3"))  # suspects: one at a time
    Worker(database, storage, settings, FakeEngine).run(threading.Event(), until_idle=True)
    with database.read() as session:
        told = get_telemetry(session, batch_id)
    assert told is not None
    assert told.outline is None


def test_the_heartbeat_tells_while_it_runs(database, storage, settings, monkeypatch) -> None:
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_SECONDS", 0.02)
    seen = []

    def look() -> None:
        with database.read() as session:
            told = get_telemetry(session, batch_id)
        seen.append(told is not None and told.outline is not None)

    batch_id = batch_to_run(database, storage, [chat(f"an instruction; question {n}") for n in range(40)])
    engine = FakeEngine(step_seconds=0.05, poison=b"question 39", on_poison=look)
    Worker(database, storage, settings, lambda: engine).run(threading.Event(), until_idle=True)
    assert seen == [True]


def test_an_outline_is_written_once_and_by_the_holder_only(database, storage, settings) -> None:
    batch_id = batch_to_run(database, storage, [chat("q")])
    claim = claim_one(database)
    for outline in ({"a": 1}, {"b": 2}):
        with database.begin() as session:
            save_telemetry(session, claim, outline=outline, series=outline)
    with database.read() as session:
        told = get_telemetry(session, batch_id)
    assert (told.outline, told.series) == ({"a": 1}, {"b": 2})
    with database.begin() as session, pytest.raises(LeaseLost):
        save_telemetry(session, replace(claim, epoch=claim.epoch + 1), outline=None, series=None)
    with database.begin() as session:
        session.execute(text("DELETE FROM batches"))
        assert get_telemetry(session, batch_id) is None


def test_the_series_goes_on_after_another_claim(database, storage, settings) -> None:
    telemetry = Telemetry({"interval_seconds": 2.0, "points": [[1.0, 2.0, 3, 4, 5, 6]]})
    telemetry.add(Point(500.0, 1.0, 1, 1, 1, 1), 99)
    told = telemetry.series_json()
    assert told == {
        "interval_seconds": 2.0,
        "kv_capacity_tokens": 99,
        "points": [[1.0, 2.0, 3, 4, 5, 6], [500.0, 1.0, 1, 1, 1, 1]],
    }


def test_a_batch_of_refused_lines_leaves_nothing(database, storage, settings) -> None:
    batch_id, told = run_worker(database, storage, settings, [{"model": "m", "messages": []}])
    assert told is None  # the only line was refused: nothing was planned
    assert read_batch(database, batch_id).failed == 1
