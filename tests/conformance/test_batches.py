"""Points 4 to 10 of the wire contract: the SDK against real processes, on both databases."""

import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types import Batch
from sqlalchemy import update

from app.db import models
from tests.conformance.test_files import refusal
from tests.live import CHAT, Live, as_file, line, results, submit, wait_for

LONG: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True}


def error_codes(lines: dict[str, dict[str, Any]]) -> set[str]:
    return {one["error"]["code"] for one in lines.values()}


def test_4_the_life_of_a_batch(client: openai.OpenAI) -> None:
    batch = submit(client, [line(f"r{number}") for number in range(30)], metadata={"of": "a test"})
    assert (batch.status, batch.request_counts and batch.request_counts.total) == ("validating", 0)
    order = ["validating", "in_progress", "finalizing", "completed"]
    seen = [batch.status]
    while seen[-1] != "completed":
        batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert batch.request_counts.completed <= 30
        if batch.status != seen[-1]:
            seen.append(batch.status)
        time.sleep(0.02)
    assert seen == [status for status in order if status in seen]
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(times, key=lambda at: at or 0)
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 30, "completed": 30, "failed": 0}
    outputs = results(client, batch.output_file_id)
    assert set(outputs) == {f"r{number}" for number in range(30)}
    usages = [one["response"]["body"]["usage"] for one in outputs.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    assert batch.metadata == {"of": "a test"}
    assert (batch.error_file_id, batch.errors) == (None, None)


WRONG_LINES: list[tuple[bytes | dict[str, Any], str, str | None]] = [
    (b"{not json", "invalid_json_line", None),
    (b"[1, 2]", "invalid_request", None),
    ({**line("a"), "custom_id": None}, "missing_required_parameter", "custom_id"),
    (line("good"), "duplicate_custom_id", "custom_id"),
    ({**line("b"), "method": "GET"}, "invalid_method", "method"),
    ({**line("c"), "url": "/v1/completions"}, "invalid_url", "url"),
    ({"custom_id": "d", "method": "POST", "url": CHAT}, "missing_required_parameter", "body"),
    (line("e", stream=True), "streaming_unsupported", "body.stream"),
    (line("f", model=None), "invalid_request", "body.model"),
    (line("g", messages=None), "invalid_request", "body.messages"),
    (line("h", model="gpt-9"), "model_not_found", "body.model"),
]


def test_5_all_errors_of_a_file_at_once(client: openai.OpenAI) -> None:
    """A byte order mark, CRLF and blank lines are no errors, but they count as lines."""
    good = as_file([line("good")]).strip()
    rows = [one if isinstance(one, bytes) else json.dumps(one).encode() for one, _, _ in WRONG_LINES]
    content = b"\xef\xbb\xbf" + good + b"\r\n\r\n   \n" + b"\r\n".join(rows)  # and no newline at the end
    batch = wait_for(client, submit(client, content))
    assert batch.status == "failed"
    assert batch.errors is not None
    found = [(error.line, error.code, error.param) for error in batch.errors.data or []]
    expected = [(number, code, param) for number, (_, code, param) in enumerate(WRONG_LINES, start=4)]
    assert found == expected
    assert all(error.message for error in batch.errors.data or [])
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.failed_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0


def test_5_each_error_alone(client: openai.OpenAI) -> None:
    batches = []
    for row, _, _ in WRONG_LINES:
        wrong = row if isinstance(row, bytes) else json.dumps(row).encode()
        batches.append(submit(client, as_file([line("good")]) + wrong + b"\n"))
    for batch, (_, code, param) in zip(batches, WRONG_LINES, strict=True):
        batch = wait_for(client, batch, "failed")
        assert batch.errors is not None
        assert [(one.line, one.code, one.param) for one in batch.errors.data or []] == [(2, code, param)]


def test_6_what_a_batch_cannot_be_made_of(client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", as_file([line("a")])), purpose="batch")

    def refused(**changes: Any) -> tuple[str, str | None]:
        given: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        error = refusal(400, client.batches.create, **(given | changes))
        return error["code"], error["param"]

    assert refused(endpoint="/v1/invalid") == ("invalid_value", "endpoint")
    assert refused(completion_window="soon") == ("invalid_value", "completion_window")
    assert refused(metadata={f"k{n}": "v" for n in range(17)})[1] == "metadata"
    assert str(refused(metadata={"k" * 65: "v"})[1]).startswith("metadata")
    assert str(refused(metadata={"k": "v" * 513})[1]).startswith("metadata")
    assert refused(metadata={"tags": ["a"]}) == ("invalid_type", "metadata.tags")
    assert refused(extra_body={"frobnicate": 1}) == ("unknown_parameter", "frobnicate")
    assert client.batches.list().data == []


def test_6_input_that_is_not_there(client: openai.OpenAI) -> None:
    done = wait_for(client, submit(client, [line("a")]))
    given: Any = {"endpoint": CHAT, "completion_window": "24h"}
    missing = client.batches.create(input_file_id="file-none", **given)
    wrong_purpose = client.batches.create(input_file_id=done.output_file_id or "", **given)
    for batch in (missing, wrong_purpose):
        batch = wait_for(client, batch, "failed")
        assert batch.errors is not None
        errors = batch.errors.data or []
        assert [(one.code, one.param, one.line) for one in errors] == [("invalid_request", "file_id", None)]


def test_7_all_lines_fail(client: openai.OpenAI) -> None:
    lines = [line("hot", temperature=9), line("unknown", frobnicate=1), line("long", max_tokens=10**6)]
    batch = wait_for(client, submit(client, lines))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 0, "failed": 3}
    errors = results(client, batch.error_file_id)
    assert set(errors) == {"hot", "unknown", "long"}
    for one in errors.values():
        assert (one["response"]["status_code"], one["error"]) == (400, None)
        assert set(one["response"]["body"]["error"]) == {"message", "type", "param", "code"}
    assert batch.usage is not None
    assert batch.usage.total_tokens == 0


def test_8_cancel_while_validating_and_while_finalizing(live: Live, client: openai.OpenAI) -> None:
    """The keeper stands still meanwhile, so that the states last."""
    with live.stopped("keeper"):
        batch = submit(client, [line("a"), line("b")])
        cancelled = client.batches.cancel(batch.id)
        assert (cancelled.status, cancelled.cancelling_at is None) == ("cancelling", False)
        assert client.batches.cancel(batch.id) == cancelled
    batch = wait_for(client, batch, "cancelled")
    assert batch.cancelled_at is not None
    assert client.batches.cancel(batch.id) == batch
    batch = wait_for(client, submit(client, [line(f"r{n}", **LONG) for n in range(4)]), "in_progress")
    with live.stopped("keeper"):
        batch = wait_for(client, batch, "finalizing")
        assert client.batches.cancel(batch.id).status == "cancelling"
    batch = wait_for(client, batch, "cancelled")
    assert len(results(client, batch.output_file_id)) == 4


def test_8_cancel_while_it_runs(client: openai.OpenAI) -> None:
    batch = submit(client, [line(f"r{n}", **LONG) for n in range(120)])
    wait_for(client, batch, "in_progress", num_completed=5)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = wait_for(client, batch, "cancelled")
    outputs, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert batch.request_counts is not None
    assert (len(outputs), batch.request_counts.failed) == (batch.request_counts.completed, 0)
    assert len(outputs) >= 5
    assert outputs.keys() | errors.keys() == {f"r{n}" for n in range(120)}
    assert len(outputs) + len(errors) == 120
    assert error_codes(errors) == {"batch_cancelled"}


def test_8_cancel_after_the_end_is_one_request(live: Live, client: openai.OpenAI) -> None:
    completed = wait_for(client, submit(client, [line("a")]))
    failed = wait_for(client, submit(client, b"{}"))
    sent: list[str] = []
    hooks = {"request": [lambda request: sent.append(request.url.path)]}
    with openai.DefaultHttpxClient(event_hooks=hooks) as http:
        counting = client.with_options(http_client=http)
        for batch in (completed, failed):
            error = refusal(409, counting.batches.cancel, batch.id)
            assert error["message"] == f"Cannot cancel a batch with status '{batch.status}'."
    assert len(sent) == 2
    refusal(404, client.batches.cancel, "batch_none")


def test_9_expiry_keeps_what_is_finished(live: Live, client: openai.OpenAI) -> None:
    batch = submit(client, [line(f"r{n}", **LONG) for n in range(120)])
    wait_for(client, batch, "in_progress", num_completed=5)
    with live.database.begin() as session:
        session.execute(update(models.Batch).where(models.Batch.id == batch.id).values(expires_at=1))
    batch = wait_for(client, batch, "expired")
    outputs, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert len(outputs) >= 5
    assert len(outputs) + len(errors) == 120
    assert not outputs.keys() & errors.keys()
    assert error_codes(errors) == {"batch_expired"}
    message = "This request could not be executed before the completion window expired."
    assert {one["error"]["message"] for one in errors.values()} == {message}
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(outputs), 0)
    assert batch.expired_at is not None
    refusal(409, client.batches.cancel, batch.id)


@pytest.mark.long
@pytest.mark.parametrize("name", ["worker", "keeper", "api"])
def test_10_a_process_that_is_killed(live: Live, client: openai.OpenAI, name: str) -> None:
    """At one moment of a batch's run; tests/test_storm.py does it at random ones."""
    batch = submit(client, [line(f"r{n}", max_tokens=100, ignore_eos=True) for n in range(100)])
    wait_for(client, batch, "in_progress", num_completed=3)
    live.process(name).kill()
    batch = persist(lambda: wait_for(client, batch))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 100, "completed": 100, "failed": 0}
    assert results(client, batch.output_file_id).keys() == {f"r{n}" for n in range(100)}


def persist(call: Callable[[], Batch]) -> Batch:
    """What `call` returns, tried again while the api is away."""
    give_up_at = time.monotonic() + 60
    while True:
        try:
            return call()
        except openai.APIConnectionError:
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
