"""The worker with a fake engine, on SQLite and Postgres."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from app import worker as worker_module
from app.db.batches import request_cancel
from app.db.leases import fence
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.settings import Settings, StartupError
from app.storage import Storage
from app.worker import Progress, Worker
from tests.app.batches import batch_to_run, chat, lines_of, read_batch, results_of
from tests.fakes import FakeEngine, FlakyDatabase

PATIENCE_SECONDS = 20.0  # for what a slow machine does late; nothing here needs it


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, model="m", model_name="m")


@pytest.fixture
def make_worker(database: Database, storage: Storage, settings: Settings) -> Callable[[FakeEngine], Worker]:
    return lambda engine: Worker(database, storage, settings, lambda: engine)


@contextmanager
def running(worker: Worker) -> Iterator[threading.Event]:
    """The worker in a thread; stopped and joined at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def wait_until(condition: Callable[[], Any], patience_seconds: float = PATIENCE_SECONDS) -> None:
    give_up_at = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def test_a_batch_is_run_and_handed_on(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_id = batch_to_run(database, storage, [chat(f"question {i}") for i in range(60)])
    seen: list[Progress] = []
    make_worker(FakeEngine()).run(threading.Event(), seen.append, until_idle=True)

    batch = read_batch(database, batch_id)
    assert batch.status == BatchStatus.FINALIZING
    assert (batch.total, batch.completed, batch.failed) == (60, 60, 0)
    assert batch.lease_owner is None
    assert seen[-1] == Progress(batch_id, 60, 0)
    results = results_of(database, batch_id)
    assert len(results) == 60
    for result in results.values():
        assert result.keys() == {"id", "custom_id", "response", "error"}
        assert result["id"].startswith("batch_req_")
        assert result["error"] is None
        response = result["response"]
        assert response["status_code"] == 200
        assert response["request_id"].startswith("req_")
        body = ChatCompletion.model_validate(response["body"], strict=True)
        assert body.model == "m"
        assert body.choices[0].message.content == ">tnat"  # the end of the prompt, reversed
        assert body.choices[0].finish_reason == "length"
    usage = [result["response"]["body"]["usage"] for result in results.values()]
    assert batch.input_tokens == sum(one["prompt_tokens"] for one in usage)
    assert batch.output_tokens == sum(one["completion_tokens"] for one in usage) == 300
    assert all(line.attempts == 1 for line in lines_of(database, batch_id))


def test_completions_endpoint(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    bodies = [{"model": "m", "prompt": "abc"}, {"model": "m", "prompt": [97, 98], "max_tokens": 1}]
    batch_id = batch_to_run(database, storage, bodies, "/v1/completions")
    make_worker(FakeEngine()).run(threading.Event(), until_idle=True)
    results = results_of(database, batch_id)
    choices = [results[name]["response"]["body"]["choices"][0] for name in ("r0", "r1")]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [
        ("cba", "stop"),
        ("b", "length"),
    ]


def test_a_line_of_many_requests_has_one_result(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    bodies = [
        {"model": "m", "prompt": ["abc", "xy"], "n": 3, "best_of": 3},
        {"model": "m", "prompt": "q"},
        {"model": "m", "prompt": ["ok", "z" * 100], "max_tokens": 1},  # the second never fits
    ]
    batch_id = batch_to_run(database, storage, bodies, "/v1/completions")
    engine = FakeEngine(kv_tokens=90, per_step=2)
    make_worker(engine).run(threading.Event(), until_idle=True)
    results = results_of(database, batch_id)
    first = results["r0"]["response"]["body"]
    assert [(one["index"], one["text"]) for one in first["choices"]] == list(
        enumerate(["cba"] * 3 + ["yx"] * 3)
    )
    assert (first["usage"]["prompt_tokens"], first["usage"]["completion_tokens"]) == (5, 15)
    assert results["r1"]["response"]["body"]["choices"][0]["text"] == "q"
    assert results["r2"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert not engine.has_work
    assert engine.starts.total() == 7  # of the line that is refused nothing runs
    batch = read_batch(database, batch_id)
    assert (batch.completed, batch.failed, batch.input_tokens, batch.output_tokens) == (2, 1, 6, 16)
    assert all(line.attempts == 1 for line in lines_of(database, batch_id))


def test_a_line_of_many_requests_leaves_and_comes_back_whole(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    """The worker stops while some of its requests are finished: all run again, as the first attempt."""
    batch_id = batch_to_run(database, storage, [chat("long", n=40)])
    engine = FakeEngine(per_step=1, step_seconds=0.02)
    with running(make_worker(engine)):
        wait_until(lambda: engine.starts.total() > 3)
    assert engine.starts.total() < 40
    assert results_of(database, batch_id) == {}
    assert [line.attempts for line in lines_of(database, batch_id)] == [0]
    make_worker(FakeEngine()).run(threading.Event(), until_idle=True)
    (result,) = results_of(database, batch_id).values()
    assert len(result["response"]["body"]["choices"]) == 40


def test_lines_that_cannot_run_become_400_lines(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    bodies = [
        chat("fine"),
        chat("too hot", temperature=9),
        chat("unknown", frobnicate=1),
        chat("x" * 2000),
        chat("no room", max_tokens=500),
    ]
    batch_id = batch_to_run(database, storage, bodies)
    make_worker(FakeEngine(kv_tokens=300)).run(threading.Event(), until_idle=True)

    batch = read_batch(database, batch_id)
    assert batch.status == BatchStatus.FINALIZING
    assert (batch.completed, batch.failed) == (1, 4)
    results = results_of(database, batch_id)
    responses = [results[f"r{i}"]["response"] for i in range(1, 5)]
    assert {response["status_code"] for response in responses} == {400}
    errors = [response["body"]["error"] for response in responses]
    assert [(error["code"], error["param"]) for error in errors] == [
        ("invalid_value", "temperature"),
        ("unknown_parameter", "frobnicate"),
        ("context_length_exceeded", "messages"),
        ("context_length_exceeded", None),
    ]
    assert "more than 300 KV slots" in errors[3]["message"]
    assert all(error.keys() == {"message", "type", "param", "code"} for error in errors)
    # Only what went to the engine counts as an attempt.
    assert [line.attempts for line in lines_of(database, batch_id)] == [1, 0, 0, 0, 1]


def test_batches_run_one_after_the_other_oldest_first(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_ids = [batch_to_run(database, storage, [chat("a")] * 3) for _ in range(3)]
    seen: list[str] = []
    make_worker(FakeEngine()).run(
        threading.Event(), lambda progress: seen.append(progress.batch_id), until_idle=True
    )
    assert list(dict.fromkeys(seen)) == batch_ids
    assert all(read_batch(database, id_).status == BatchStatus.FINALIZING for id_ in batch_ids)


def test_a_cancelled_batch_keeps_what_is_finished(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a")] * 5000)
    engine = FakeEngine(step_seconds=0.01, per_step=1)
    with running(make_worker(engine)):
        wait_until(lambda: read_batch(database, batch_id).completed > 0)
        with database.begin() as session:
            request_cancel(session, batch_id)
        wait_until(lambda: read_batch(database, batch_id).lease_owner is None)
        batch = read_batch(database, batch_id)
        assert batch.status == BatchStatus.CANCELLING
        assert not engine.has_work
        assert batch.completed == len(results_of(database, batch_id)) == engine.starts.total() < 5000
        # The worker is free for the next batch.
        next_id = batch_to_run(database, storage, [chat("b")])
        wait_until(lambda: read_batch(database, next_id).status == BatchStatus.FINALIZING)


def test_a_lost_lease_ends_all_writing(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a")] * 5000)
    engine = FakeEngine(step_seconds=0.01, per_step=1)
    with running(make_worker(engine)):
        wait_until(lambda: read_batch(database, batch_id).completed > 0)
        with database.begin() as session:
            epoch = read_batch(database, batch_id).epoch
            fence(session, batch_id, status=BatchStatus.IN_PROGRESS, epoch=epoch)
            # Another has it now, so that this worker does not simply claim it again.
            batch = session.get_one(type(read_batch(database, batch_id)), batch_id)
            batch.expires_at = 1
        num_written = len(results_of(database, batch_id))
        wait_until(lambda: not engine.has_work)
    batch = read_batch(database, batch_id)
    assert len(results_of(database, batch_id)) == num_written == batch.completed
    assert batch.status == BatchStatus.IN_PROGRESS
    assert batch.epoch == epoch + 1


def test_a_stop_flushes_and_a_restart_runs_only_the_rest(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a")] * 300)
    first = FakeEngine(step_seconds=0.01, per_step=2)
    with running(make_worker(first)) as stop:
        wait_until(lambda: first.starts.total() > 60)
        stop.set()
    batch = read_batch(database, batch_id)
    assert batch.status == BatchStatus.IN_PROGRESS
    assert batch.lease_owner is None
    assert batch.completed == len(results_of(database, batch_id)) == first.starts.total() < 300

    second = FakeEngine(per_step=50)
    make_worker(second).run(threading.Event(), until_idle=True)
    runs = first.starts + second.starts
    assert set(runs.values()) == {1}
    assert len(runs) == 300
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.FINALIZING, 300, 0)


def test_an_engine_that_breaks_loses_nothing_that_was_finished(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a")] * 40)
    broken = FakeEngine(fail_at_step=4)
    with pytest.raises(RuntimeError, match="the fake device broke"):
        make_worker(broken).run(threading.Event(), until_idle=True)
    assert len(results_of(database, batch_id)) == 12
    second = FakeEngine()
    make_worker(second).run(threading.Event(), until_idle=True)
    assert set((broken.starts + second.starts).values()) == {1}
    assert read_batch(database, batch_id).completed == 40


def test_a_batch_without_its_input_fails(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a")])
    for blob in list(storage.list_blobs()):
        storage.remove(blob)
    make_worker(FakeEngine()).run(threading.Event(), until_idle=True)
    batch = read_batch(database, batch_id)
    assert batch.status == BatchStatus.FAILED
    assert batch.errors is not None
    assert batch.errors[0]["param"] == "file_id"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_worker_on_sqlite_is_refused(
    database: Database, make_worker: Callable[[FakeEngine], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LOCK_PATIENCE_SECONDS", 0.0)
    built = threading.Event()

    class Announced(FakeEngine):
        @property
        def has_work(self) -> bool:
            built.set()
            return super().has_work

    with running(make_worker(Announced())):
        assert built.wait(PATIENCE_SECONDS)
        with pytest.raises(StartupError, match="Another worker already runs"):
            make_worker(FakeEngine()).run(threading.Event())


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_two_workers_on_postgres_share_the_batches(
    database: Database, storage: Storage, settings: Settings
) -> None:
    batch_ids = [batch_to_run(database, storage, [chat("a")] * 20) for _ in range(6)]
    engines = [FakeEngine(step_seconds=0.02), FakeEngine(step_seconds=0.02)]
    # Each leaves to the other what it does not run.
    one_at_a_time = settings.model_copy(update={"claim_tokens": 1})
    workers = [Worker(database, storage, one_at_a_time, lambda engine=engine: engine) for engine in engines]
    with running(workers[0]), running(workers[1]):
        wait_until(
            lambda: all(read_batch(database, id_).status == BatchStatus.FINALIZING for id_ in batch_ids)
        )
    assert set((engines[0].starts + engines[1].starts).values()) == {1}
    assert all(len(results_of(database, id_)) == 20 for id_ in batch_ids)
    assert all(engine.starts for engine in engines)


def test_outages_lose_and_double_nothing(
    database: Database, database_url: str, storage: Storage, settings: Settings
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a", temperature=9 * (i % 7 == 0)) for i in range(200)])
    flaky = FlakyDatabase(database_url)
    flaky.is_away = True
    engine = FakeEngine(step_seconds=0.01, per_step=1)
    # A claim whose commit is hidden has to run out before it is taken again.
    short_lease = settings.model_copy(update={"lease_seconds": 1})
    with running(Worker(flaky, storage, short_lease, lambda: engine)):
        time.sleep(0.3)
        flaky.is_away = False
        for hides_commits in (False, True):
            wait_until(lambda: engine.has_work or not read_batch(database, batch_id).lease_owner)
            flaky.hides_commits = hides_commits
            flaky.is_away = True
            time.sleep(0.3)
            flaky.is_away = False
        wait_until(lambda: read_batch(database, batch_id).status == BatchStatus.FINALIZING)
    flaky.dispose()
    assert set(engine.starts.values()) == {1}
    assert len(results_of(database, batch_id)) == 200
    batch = read_batch(database, batch_id)
    assert (batch.completed, batch.failed) == (171, 29)


def test_the_default_output_bound_is_the_settings(
    database: Database, storage: Storage, settings: Settings
) -> None:
    batch_id = batch_to_run(database, storage, [chat("a", max_tokens=None)])
    bounded = settings.model_copy(update={"default_max_tokens": 3})
    Worker(database, storage, bounded, FakeEngine).run(threading.Event(), until_idle=True)
    body = results_of(database, batch_id)["r0"]["response"]["body"]
    assert body["usage"]["completion_tokens"] == 3


def embeddings(given: object, **parameters: Any) -> dict[str, Any]:
    return {"model": "m", "input": given} | parameters


def test_a_batch_of_embeddings_is_answered_with_vectors(
    database: Database, storage: Storage, make_worker: Callable[[FakeEngine], Worker]
) -> None:
    lines = [embeddings(["ab", "c"]), embeddings("d" * 21), embeddings("xy", encoding_format="base64")]
    batch_id = batch_to_run(database, storage, lines, endpoint="/v1/embeddings")
    make_worker(FakeEngine(max_context=20, embedding_size=2)).run(threading.Event(), until_idle=True)
    results = results_of(database, batch_id)
    answers = [results[f"r{i}"]["response"] for i in range(3)]
    assert [answer["status_code"] for answer in answers] == [200, 400, 200]
    first = CreateEmbeddingResponse.model_validate(answers[0]["body"])
    norm = float(np.hypot(97, 98))
    assert first.data[0].embedding == pytest.approx([97 / norm, 98 / norm], rel=1e-6)
    assert answers[0]["body"]["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert answers[1]["body"]["error"]["code"] == "context_length_exceeded"
    assert len(answers[2]["body"]["data"][0]["embedding"]) == 12
    assert read_batch(database, batch_id).status == BatchStatus.FINALIZING
