"""/v1/batches through the SDK: creation, reading, paging, cancellation, and every refusal."""

from itertools import pairwise
from typing import Any

import openai
import pytest
from openai.types import Batch

from app.db import batches
from app.lifecycle import BatchStatus
from tests.app.api.conftest import Server

S = BatchStatus

# One way to reach each status.
ROADS = {
    S.VALIDATING: [],
    S.FAILED: [S.FAILED],
    S.IN_PROGRESS: [S.IN_PROGRESS],
    S.FINALIZING: [S.IN_PROGRESS, S.FINALIZING],
    S.COMPLETED: [S.IN_PROGRESS, S.FINALIZING, S.COMPLETED],
    S.EXPIRED: [S.EXPIRED],
    S.CANCELLING: [S.CANCELLING],
    S.CANCELLED: [S.CANCELLING, S.CANCELLED],
}


def create(server: Server, **changes: Any) -> Batch:
    arguments: dict[str, Any] = {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return server.client.batches.create(**(arguments | changes))


def move(server: Server, batch_id: str, status: BatchStatus, **columns: Any) -> None:
    """Bring a new batch to `status`, as keeper and worker would; `columns` are set by the last step."""
    road = [S.VALIDATING, *ROADS[status]]
    with server.database.begin() as session:
        for i, (old, new) in enumerate(pairwise(road), start=2):
            assert batches.transition(session, batch_id, old, new, **(columns if i == len(road) else {}))


def refusal(server: Server, **changes: Any) -> dict[str, Any]:
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, **changes)
    assert isinstance(caught.value.body, dict)
    return caught.value.body


def test_create_and_retrieve(server: Server) -> None:
    batch = create(server, metadata={"job": "nightly", "größe": ""})
    assert batch.id.startswith("batch_")
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
    assert (batch.input_file_id, batch.completion_window) == ("file-1", "24h")
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.metadata == {"job": "nightly", "größe": ""}
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}
    assert batch.usage is None
    retrieved = server.client.batches.retrieve(batch.id).to_dict()
    assert retrieved | {"progress": None} == batch.to_dict() | {"progress": None}


@pytest.mark.parametrize(
    ("window", "seconds"), [("1m", 60), ("90m", 5_400), ("1h", 3_600), ("7d", 604_800), ("30d", 2_592_000)]
)
def test_other_windows_are_an_extension(shared_server: Server, window: str, seconds: int) -> None:
    batch = create(shared_server, completion_window=window)
    assert batch.completion_window == window
    assert batch.expires_at == batch.created_at + seconds


@pytest.mark.parametrize("window", ["", "24", "0h", "-1h", "1.5h", "24H", "24h\n", "31d", "999999999d", "٣h"])
def test_windows_that_are_refused(shared_server: Server, window: str) -> None:
    body = refusal(shared_server, completion_window=window)
    assert (body["param"], body["code"]) == ("completion_window", "invalid_value")
    assert "completion_window" in body["message"]


def test_endpoints_that_are_not_served(shared_server: Server) -> None:
    for endpoint in ("/v1/invalid/endpoint", "/v1/moderations"):
        body = refusal(shared_server, endpoint=endpoint)
        assert (body["param"], body["code"]) == ("endpoint", "invalid_value")
        assert body["message"] == (
            f"Invalid value: '{endpoint}'. Supported values are: '/v1/chat/completions', '/v1/completions', "
            "'/v1/responses', '/v1/embeddings', '/v1/score', '/v1/rerank'."
        )


@pytest.mark.parametrize("missing", ["input_file_id", "endpoint", "completion_window"])
def test_required_parameters(shared_server: Server, missing: str) -> None:
    body = refusal(shared_server, **{missing: openai.omit})
    assert body["message"] == f"Missing required parameter: '{missing}'."
    assert (body["param"], body["code"]) == (missing, "missing_required_parameter")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "invalid_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value"),
        ({"metadata": {"n": 3}}, "metadata.n", "invalid_type"),
        ({"metadata": "text"}, "metadata", "invalid_type"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"endpoint": None}, "endpoint", "invalid_type"),
        ({"input_file_id": 7}, "input_file_id", "invalid_type"),
        ({"input_file_id": "file-\x00"}, "input_file_id", "invalid_value"),
        ({"input_file_id": "f" * 65}, "input_file_id", "invalid_value"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            "output_expires_after.anchor",
            "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at"}},
            "output_expires_after.seconds",
            "missing_required_parameter",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1.5}},
            "output_expires_after.seconds",
            "invalid_type",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            "output_expires_after.seconds",
            "invalid_value",
        ),
    ],
)
def test_bad_parameters(shared_server: Server, changes: dict[str, Any], param: str, code: str) -> None:
    body = refusal(shared_server, **changes)
    assert (body["param"], body["code"], body["type"]) == (param, code, "invalid_request_error")


def test_a_metadata_value_of_another_type(shared_server: Server) -> None:
    body = refusal(shared_server, metadata={"tags": ["a"]})
    assert body["message"] == "Invalid type for 'metadata.tags': expected a string, but got an array instead."


def test_output_expires_after_is_kept(server: Server) -> None:
    chosen = create(server, output_expires_after={"anchor": "created_at", "seconds": 3_600})
    usual = create(server, extra_body={"output_expires_after": None})
    with server.database.read() as session:
        kept = {
            row.id: row.output_expires_seconds
            for row in batches.list_batches(session, after=None, limit=2)[0]
        }
    assert kept == {chosen.id: 3_600, usual.id: None}


def test_metadata_at_its_limits(shared_server: Server) -> None:
    metadata = {f"{i:064}": "v" * 512 for i in range(16)}
    assert create(shared_server, metadata=metadata).metadata == metadata
    assert create(shared_server, metadata=None).metadata is None
    assert create(shared_server, metadata={}).metadata == {}


def test_paging_by_one_meets_every_batch_once(server: Server) -> None:
    assert server.client.batches.list().data == []
    expected = [create(server).id for _ in range(5)][::-1]
    met = []
    for batch in server.client.batches.list(limit=1):
        met.append(batch.id)
        create(server)  # newer than the cursor
    assert met == expected


def test_list_defaults_to_twenty_newest(server: Server) -> None:
    ids = [create(server).id for _ in range(21)][::-1]
    page = server.http("GET", "/v1/batches").json()
    assert [batch["id"] for batch in page["data"]] == ids[:20]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        ids[0],
        ids[19],
        True,
    )
    last = server.http("GET", f"/v1/batches?after={ids[19]}").json()
    assert ([batch["id"] for batch in last["data"]], last["has_more"]) == (ids[20:], False)


def test_an_unknown_batch(server: Server) -> None:
    for call in (server.client.batches.retrieve, server.client.batches.cancel):
        with pytest.raises(openai.NotFoundError) as caught:
            call("batch_x")
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["message"] == "No batch found with id 'batch_x'."


@pytest.mark.parametrize("status", [S.VALIDATING, S.IN_PROGRESS, S.FINALIZING])
def test_cancelling_what_runs(shared_server: Server, status: BatchStatus) -> None:
    batch = create(shared_server)
    move(shared_server, batch.id, status)
    cancelled = shared_server.client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    assert cancelled.cancelling_at >= cancelled.created_at
    assert shared_server.client.batches.cancel(batch.id) == cancelled


def test_cancelling_what_is_cancelled(server: Server) -> None:
    batch = create(server)
    move(server, batch.id, S.CANCELLED)
    assert server.client.batches.cancel(batch.id) == server.client.batches.retrieve(batch.id)


@pytest.mark.parametrize("status", [S.COMPLETED, S.FAILED, S.EXPIRED])
def test_cancelling_what_has_ended_is_a_conflict_after_one_request(
    shared_server: Server, status: BatchStatus
) -> None:
    batch = create(shared_server)
    move(shared_server, batch.id, status)
    shared_server.requests.clear()
    with pytest.raises(openai.ConflictError) as caught:
        shared_server.client.batches.cancel(batch.id)
    assert caught.value.body == {
        "message": f"Cannot cancel a batch with status '{status}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert shared_server.requests == [f"POST /v1/batches/{batch.id}/cancel"]


def test_a_failed_batch_shows_its_errors(shared_server: Server) -> None:
    batch = create(shared_server)
    errors = [
        {"code": "invalid_json_line", "message": "Not JSON.", "param": None, "line": 2},
        {"code": "empty_file", "message": "Empty.", "param": None, "line": None},
    ]
    move(shared_server, batch.id, S.FAILED, errors=errors)
    failed = shared_server.client.batches.retrieve(batch.id)
    assert failed.errors is not None
    assert failed.errors.object == "list"
    assert [error.to_dict() for error in failed.errors.data or []] == errors
    assert failed.failed_at is not None


def test_usage_and_counts(server: Server) -> None:
    batch = create(server)
    columns = {
        "total": 3,
        "completed": 2,
        "failed": 1,
        "input_tokens": 50,
        "cached_tokens": 20,
        "output_tokens": 7,
    }
    move(server, batch.id, S.COMPLETED, **columns, output_file_id="file-o", error_file_id="file-e", model="m")
    done = server.client.batches.retrieve(batch.id)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert done.usage is not None
    assert done.usage.to_dict() == {
        "input_tokens": 50,
        "input_tokens_details": {"cached_tokens": 20},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 57,
    }
    assert (done.output_file_id, done.error_file_id, done.model) == ("file-o", "file-e", "m")
