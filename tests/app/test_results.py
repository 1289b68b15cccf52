"""The recorder: chunks with their counts, through outages and lost leases."""

import time
from collections.abc import Callable, Iterator

import orjson
import pytest

from app import results as results_module
from app.db.leases import Claim, claim_batch, fence
from app.db.lines import NewResult, PendingLine
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.openai.body import BodyError
from app.results import Recorder, ResultQueue, failure
from app.storage import Storage
from tests.app.batches import batch_to_run, chat, lines_of, read_batch, results_of
from tests.fakes import FlakyDatabase

PATIENCE_SECONDS = 20.0


@pytest.fixture
def flaky(database_url: str) -> Iterator[FlakyDatabase]:
    database = FlakyDatabase(database_url)
    yield database
    database.dispose()


@pytest.fixture
def claim(database: Database, storage: Storage) -> Claim:
    batch_to_run(database, storage, [chat("a")] * 120)
    with database.begin() as session:
        claim = claim_batch(session, worker_id="w", lease_seconds=30, takeover=False)
    assert claim is not None
    return claim


@pytest.fixture
def answers(database: Database, claim: Claim) -> list[NewResult]:
    """A result for each line, every third a failure."""
    return [
        NewResult(line.id, i % 3 > 0, 1, orjson.dumps({"custom_id": line.custom_id}), 10, 4, 2)
        for i, line in enumerate(lines_of(database, claim.batch_id))
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.01)


def drain(recorder: Recorder, queue: ResultQueue) -> None:
    wait_until(lambda: recorder.finish(queue))


def check_all_recorded(database: Database, claim: Claim) -> None:
    assert len(results_of(database, claim.batch_id)) == 120
    batch = read_batch(database, claim.batch_id)
    assert (batch.completed, batch.failed) == (80, 40)
    assert (batch.input_tokens, batch.cached_tokens, batch.output_tokens) == (1200, 480, 240)


def test_results_are_committed_with_their_counts(
    database: Database, claim: Claim, answers: list[NewResult]
) -> None:
    recorder = Recorder(database)
    queue = recorder.open(claim)
    for answer in answers:
        recorder.put(queue, [answer])
    drain(recorder, queue)
    check_all_recorded(database, claim)
    assert (queue.num_completed, queue.num_failed) == (80, 40)
    assert recorder.close(0) == 0


def test_a_full_chunk_is_written_without_being_asked(
    database: Database, claim: Claim, answers: list[NewResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "CHUNK_SECONDS", 3600.0)
    recorder = Recorder(database)
    queue = recorder.open(claim)
    recorder.put(queue, answers[:51])
    wait_until(lambda: read_batch(database, claim.batch_id).completed > 0)
    recorder.put(queue, answers[51:60])
    assert recorder.close(PATIENCE_SECONDS) == 0
    assert len(results_of(database, claim.batch_id)) == 60


def test_a_lonely_result_is_written_after_a_while(
    database: Database, claim: Claim, answers: list[NewResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "CHUNK_SECONDS", 0.05)
    recorder = Recorder(database)
    recorder.put(recorder.open(claim), answers[:1])
    wait_until(lambda: len(results_of(database, claim.batch_id)) == 1)
    recorder.close(0)


def test_an_outage_keeps_results_in_memory(
    database: Database, flaky: FlakyDatabase, claim: Claim, answers: list[NewResult]
) -> None:
    flaky.is_away = True
    recorder = Recorder(flaky)
    queue = recorder.open(claim)
    recorder.put(queue, answers[:100])
    wait_until(lambda: queue.num_in_doubt > 0)
    recorder.put(queue, answers[100:])
    flaky.is_away = False
    drain(recorder, queue)
    recorder.close(0)
    check_all_recorded(database, claim)


def test_a_commit_that_an_outage_hides_is_not_doubled(
    database: Database, flaky: FlakyDatabase, claim: Claim, answers: list[NewResult]
) -> None:
    flaky.is_away = flaky.hides_commits = True
    recorder = Recorder(flaky)
    queue = recorder.open(claim)
    recorder.put(queue, answers[:60])
    wait_until(lambda: len(results_of(database, claim.batch_id)) == 60)
    recorder.put(queue, answers[60:])
    drain(recorder, queue)
    recorder.close(0)
    check_all_recorded(database, claim)
    assert (queue.num_completed, queue.num_failed) == (80, 40)


def test_closing_gives_up_on_an_outage_and_says_so(
    database: Database, flaky: FlakyDatabase, claim: Claim, answers: list[NewResult]
) -> None:
    flaky.is_away = True
    recorder = Recorder(flaky)
    recorder.put(recorder.open(claim), answers)
    assert recorder.close(0.3) == 120
    assert results_of(database, claim.batch_id) == {}


def test_nothing_is_written_under_a_lost_lease(
    database: Database, claim: Claim, answers: list[NewResult]
) -> None:
    with database.begin() as session:
        fence(session, claim.batch_id, status=BatchStatus.IN_PROGRESS, epoch=claim.epoch)
    recorder = Recorder(database)
    queue = recorder.open(claim)
    recorder.put(queue, answers)
    wait_until(lambda: queue.is_lost)
    assert recorder.finish(queue)
    assert recorder.close(0) == 0
    assert results_of(database, claim.batch_id) == {}
    assert read_batch(database, claim.batch_id).completed == 0


def test_a_result_that_is_there_already_is_a_fault_that_ends_the_worker(
    database: Database, claim: Claim, answers: list[NewResult]
) -> None:
    recorder = Recorder(database)
    queue = recorder.open(claim)
    recorder.put(queue, [answers[0], answers[0]])
    recorder.close(PATIENCE_SECONDS)
    with pytest.raises(results_module.DuplicateResult):
        recorder.check()


def test_an_error_line() -> None:
    line = PendingLine(id=7, line=3, custom_id="é", offset=0, length=1, attempts=2)
    result = failure(line, 2, BodyError("No.", "messages", "context_length_exceeded"))
    assert (result.request_line_id, result.ok, result.attempt) == (7, False, 2)
    assert b"\n" not in result.payload
    payload = orjson.loads(result.payload)
    assert payload["custom_id"] == "é"
    assert payload["error"] is None
    assert payload["response"]["status_code"] == 400
    assert payload["response"]["body"] == {
        "error": {
            "message": "No.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }
