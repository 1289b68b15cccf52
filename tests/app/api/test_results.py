"""/v1/batches/{id}/results: what is there while a batch runs, line by line as the files will have it."""

from typing import Any

import httpx2
import orjson
import pytest

from app.api import results as handlers
from app.batch_input import InputLine
from app.db.batches import transition
from app.db.lines import add_request_lines
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from tests.app.api.conftest import Server
from tests.app.api.test_errors import error_of
from tests.app.db.jobs import start_batch
from tests.app.steps import answer, claim_one, finish


def get(server: Server, batch_id: str, query: str = "") -> httpx2.Response:
    response = server.http("GET", f"/v1/batches/{batch_id}/results{query}")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/jsonl"
    return response


def lines_of(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.content == b"" or response.content.endswith(b"\n")
    return [orjson.loads(line) for line in response.content.splitlines()]


def custom_ids(server: Server, batch_id: str, query: str = "") -> list[str]:
    return [line["custom_id"] for line in lines_of(get(server, batch_id, query))]


def test_partial_results(server: Server) -> None:
    batch_id = start_batch(server.database, 5)
    other_id = start_batch(server.database, 2)
    assert custom_ids(server, batch_id) == []
    claim = claim_one(server.database)
    assert claim.batch_id == batch_id
    answer(server.database, claim, {"r4": True, "r2": False})
    answer(server.database, claim, {"r1": True})
    response = get(server, batch_id)
    assert response.headers["x-incomplete"] == "true"
    assert [line["custom_id"] for line in lines_of(response)] == ["r1", "r2", "r4"]
    assert custom_ids(server, batch_id, "?status=completed&format=jsonl") == ["r1", "r4"]
    assert custom_ids(server, batch_id, "?status=failed") == ["r2"]
    assert lines_of(get(server, batch_id, "?status=pending")) == [
        {"id": None, "custom_id": custom_id, "response": None, "error": None} for custom_id in ("r3", "r5")
    ]
    assert custom_ids(server, batch_id, "?after_line=2") == ["r4"]
    assert custom_ids(server, batch_id, "?after_line=3&status=pending") == ["r5"]
    assert custom_ids(server, batch_id, "?after_line=2147483647") == []
    assert custom_ids(server, other_id) == []


def test_an_ended_batch_s_results_are_its_files(server: Server) -> None:
    keeper = Keeper(server.database, server.storage, server.settings)
    batch_id = start_batch(server.database, 3)
    claim = claim_one(server.database)
    answer(server.database, claim, {"r3": True, "r2": False, "r1": True})
    finish(server.database, claim)
    keeper.tick()
    batch = server.client.batches.retrieve(batch_id)
    assert batch.status == "completed"
    for status, file_id in (("completed", batch.output_file_id), ("failed", batch.error_file_id)):
        response = get(server, batch_id, f"?status={status}")
        assert response.headers["x-incomplete"] == "false"
        assert response.content == server.client.files.content(file_id or "").read()


def test_many_lines_come_in_chunks(server: Server) -> None:
    num_lines = 2 * handlers.LINES_PER_CHUNK + 1
    batch_id = start_batch(server.database, num_lines)
    claim = claim_one(server.database)
    answer(server.database, claim, {f"r{n}": n % 3 > 0 for n in range(1, num_lines + 1)})
    assert custom_ids(server, batch_id) == [f"r{n}" for n in range(1, num_lines + 1)]
    assert custom_ids(server, batch_id, "?status=failed&after_line=9") == [
        f"r{n}" for n in range(12, num_lines + 1, 3)
    ]


def test_line_numbers_are_those_of_the_file(server: Server) -> None:
    """Blank lines count, and so do lines of batches that were validated meanwhile: ids have gaps."""
    batch_id = start_batch(server.database, 0)
    for number in (3, 70, 71):
        with server.database.begin() as session:
            add_request_lines(session, batch_id, [InputLine(number, f"r{number}", 0, 1, "m")])
        start_batch(server.database, 2)
    assert custom_ids(server, batch_id, "?status=pending&after_line=2") == ["r3", "r70", "r71"]
    assert custom_ids(server, batch_id, "?status=pending&after_line=3") == ["r70", "r71"]
    assert custom_ids(server, batch_id, "?status=pending&after_line=70") == ["r71"]


def test_a_failed_batch_has_none(server: Server) -> None:
    batch_id = start_batch(server.database, 0)
    with server.database.begin() as session:
        transition(session, batch_id, BatchStatus.IN_PROGRESS, BatchStatus.FAILED)
    response = get(server, batch_id)
    assert (response.content, response.headers["x-incomplete"]) == (b"", "false")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("format=csv", "format"),
        ("status=running", "status"),
        ("after_line=-1", "after_line"),
        ("after_line=2147483648", "after_line"),
        ("after_line=x", "after_line"),
    ],
)
def test_bad_queries(shared_server: Server, query: str, param: str) -> None:
    error = error_of(shared_server, "GET", f"/v1/batches/batch_1/results?{query}", 400)
    assert (error["param"], error["code"]) == (param, "invalid_value")


@pytest.mark.parametrize("batch_id", ["batch_none", "%00", "x" * 5_000])
def test_unknown_batches(shared_server: Server, batch_id: str) -> None:
    error_of(shared_server, "GET", f"/v1/batches/{batch_id}/results", 404)
