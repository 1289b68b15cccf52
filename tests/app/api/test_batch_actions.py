"""Pause, resume and retry, over HTTP and with a worker."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from httpx2 import Response
from openai.types import Batch

from app.db import batches
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.worker import Worker
from tests.app.api.conftest import Server
from tests.app.api.test_batches import ROADS, create, move
from tests.app.batches import batch_to_run, chat, lines_of, read_batch, results_of
from tests.app.db.jobs import set_columns
from tests.app.steps import answer, claim_one, finish
from tests.app.test_worker import running, wait_until
from tests.fakes import FakeEngine

S = BatchStatus
PAUSABLE = {S.VALIDATING, S.IN_PROGRESS}


def act(server: Server, batch_id: str, action: str) -> dict[str, Any]:
    response = server.http("POST", f"/v1/batches/{batch_id}/{action}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    Batch.model_validate(body, strict=True)
    return body


def test_pause_and_resume_may_be_repeated(server: Server) -> None:
    batch_id = create(server).id
    paused = act(server, batch_id, "pause")
    assert (paused["status"], type(paused["paused_at"])) == ("validating", int)
    assert act(server, batch_id, "pause") == paused
    assert act(server, batch_id, "resume")["paused_at"] is None
    assert act(server, batch_id, "resume")["paused_at"] is None
    assert act(server, batch_id, "pause")["paused_at"] >= paused["paused_at"]
    assert server.client.batches.cancel(batch_id).status == "cancelling"


@pytest.mark.parametrize("action", ["pause", "resume"])
@pytest.mark.parametrize("status", sorted(set(ROADS) - PAUSABLE))
def test_what_is_over_cannot_be_paused(shared_server: Server, status: BatchStatus, action: str) -> None:
    batch_id = create(shared_server).id
    move(shared_server, batch_id, status)
    response = shared_server.http("POST", f"/v1/batches/{batch_id}/{action}")
    assert response.status_code == 409
    assert response.json()["error"]["message"] == f"Cannot {action} a batch with status '{status}'."
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("action", ["pause", "resume", "retry"])
def test_unknown_batches(shared_server: Server, action: str) -> None:
    assert shared_server.http("POST", f"/v1/batches/batch_nope/{action}").status_code == 404


def test_a_paused_batch_leaves_the_worker_and_comes_back(server: Server) -> None:
    database = server.database
    batch_id = batch_to_run(database, server.storage, [chat("a")] * 400)
    engine = FakeEngine(step_seconds=0.01, per_step=1)
    settings = server.settings.model_copy(update={"model_name": "m"})
    with running(Worker(database, server.storage, settings, lambda: engine)):
        wait_until(lambda: read_batch(database, batch_id).completed)
        act(server, batch_id, "pause")
        wait_until(lambda: read_batch(database, batch_id).lease_owner is None)
        batch = read_batch(database, batch_id)
        assert batch.status == S.IN_PROGRESS
        assert not engine.has_work
        done = results_of(database, batch_id)
        assert batch.completed == len(done) == engine.starts.total() < 400
        assert {line.attempts for line in lines_of(database, batch_id) if line.custom_id not in done} == {0}
        # Nothing happens to it, but another runs.
        next_id = batch_to_run(database, server.storage, [chat("b")])
        wait_until(lambda: read_batch(database, next_id).status == S.FINALIZING)
        assert results_of(database, batch_id) == done
        engine.per_step = 50
        act(server, batch_id, "resume")
        wait_until(lambda: read_batch(database, batch_id).status == S.FINALIZING)
    assert set(engine.starts.values()) == {1}
    assert len(results_of(database, batch_id)) == 400


def test_a_retry_is_a_batch_of_what_has_no_answer(server: Server) -> None:
    database, storage = server.database, server.storage
    settings = server.settings.model_copy(update={"model_name": "m"})
    keeper = Keeper(database, storage, settings)
    batch_id = batch_to_run(database, storage, [chat(f"question {number}") for number in range(5)])
    claim = claim_one(database)
    answer(database, claim, {"r0": True, "r1": False, "r3": True})
    with database.begin() as session:
        batches.request_cancel(session, batch_id)
        session.get_one(type(read_batch(database, batch_id)), batch_id).lease_owner = None
    keeper.tick()
    assert read_batch(database, batch_id).status == S.CANCELLED

    retry = act(server, batch_id, "retry")
    assert (retry["status"], retry["metadata"]) == ("validating", {"retry_of": batch_id})
    assert retry["id"] != batch_id
    content = server.client.files.content(retry["input_file_id"]).read()
    lines = [orjson.loads(line) for line in content.splitlines()]
    assert [line["custom_id"] for line in lines] == ["r1", "r2", "r4"]
    assert lines[1]["body"]["messages"][0]["content"] == "question 2"
    keeper.tick()
    retried = read_batch(database, retry["id"])
    assert (retried.status, retried.total) == (S.IN_PROGRESS, 3)
    again = claim_one(database)
    answer(database, again, {"r1": True, "r2": True, "r4": True})
    finish(database, again)
    keeper.tick()
    response = server.http("POST", f"/v1/batches/{retry['id']}/retry")
    assert response.status_code == 409
    assert "nothing to retry" in response.json()["error"]["message"]


def ended_with_failures(server: Server) -> str:
    """Id of a cancelled batch of three lines, none of which has run."""
    batch_id = batch_to_run(server.database, server.storage, [chat(f"question {i}") for i in range(3)])
    server.client.batches.cancel(batch_id)
    Keeper(server.database, server.storage, server.settings).tick()
    return batch_id


def retry(server: Server, batch_id: str, key: str) -> Response:
    return server.http("POST", f"/v1/batches/{batch_id}/retry", headers={"idempotency-key": key})


def test_a_retry_under_a_key_is_made_once(server: Server) -> None:
    batch_id = ended_with_failures(server)
    first = retry(server, batch_id, "k").json()
    kept = server.blob_names()
    assert retry(server, batch_id, "k").json() == first
    assert server.blob_names() == kept
    assert retry(server, batch_id, "k2").json()["id"] != first["id"]
    other = retry(server, ended_with_failures(server), "k")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"
    # What the first request made is there, even if it could not be made again.
    server.http("DELETE", f"/v1/batches/{batch_id}")
    assert retry(server, batch_id, "k").json()["id"] == first["id"]
    assert retry(server, batch_id, "k3").status_code == 404


def test_equal_retries_at_once_make_one_batch(server: Server) -> None:
    batch_id = ended_with_failures(server)
    num_blobs = len(server.blob_names())
    ready = threading.Barrier(4)

    def together(_: int) -> str:
        ready.wait()
        return str(retry(server, batch_id, "k").json()["id"])

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(together, range(4)))) == 1
    assert len(server.blob_names()) == num_blobs + 1


def test_what_has_not_ended_or_never_began_is_not_retried(server: Server) -> None:
    for status in (S.VALIDATING, S.IN_PROGRESS, S.FINALIZING, S.CANCELLING, S.FAILED):
        batch_id = create(server).id
        move(server, batch_id, status)
        response = server.http("POST", f"/v1/batches/{batch_id}/retry")
        assert response.status_code == 409
        assert response.json()["error"]["message"] == f"Cannot retry a batch with status '{status}'."


def test_a_retry_needs_the_input_of_the_old_batch(server: Server) -> None:
    batch_id = create(server).id
    move(server, batch_id, S.COMPLETED)
    response = server.http("POST", f"/v1/batches/{batch_id}/retry")
    assert response.status_code == 409
    assert "no longer there" in response.json()["error"]["message"]


def test_progress_of_a_batch_that_runs_and_of_one_that_waits(server: Server) -> None:
    database, storage = server.database, server.storage
    other = batch_to_run(database, storage, [chat("a")])
    set_columns(database, other, models=["other"])
    first, second = (batch_to_run(database, storage, [chat("a")] * 2000) for _ in range(2))

    def progress(batch_id: str) -> dict[str, Any]:
        body = server.http("GET", f"/v1/batches/{batch_id}").json()
        Batch.model_validate(body, strict=True)
        return dict(body["progress"])

    assert progress(first)["waiting_for"] == "No worker is ready."
    engine = FakeEngine(step_seconds=0.01, per_step=2)
    settings = server.settings.model_copy(update={"model_name": "m", "claim_tokens": 1})
    with running(Worker(database, storage, settings, lambda: engine)):
        wait_until(lambda: progress(first)["eta_seconds"])
        told = progress(first)
        assert (told["lines_running"], told["lines_read"]) == (2, 2000)
        assert 0 < told["output_tokens_done"] < told["prompt_tokens_done"]
        assert (told["queue_position"], told["waiting_for"]) == (0, None)
        assert (progress(other)["queue_position"], progress(second)["queue_position"]) == (1, 2)
        assert progress(second)["waiting_for"] is None
        assert progress(other)["waiting_for"] == "No worker that is ready serves the model 'other'."
        act(server, second, "pause")
        waits = progress(second)
        assert (waits["queue_position"], waits["waiting_for"]) == (None, "The batch is paused.")
    stopped = progress(first)
    assert (stopped["lines_running"], stopped["eta_seconds"]) == (0, None)
    assert stopped["prompt_tokens_done"] >= told["prompt_tokens_done"]
    assert stopped["waiting_for"] == "No worker is ready."
    new = progress(create(server).id)  # to be validated yet
    assert (new["lines_read"], new["queue_position"], new["waiting_for"]) == (0, None, None)
