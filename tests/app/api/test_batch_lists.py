"""Filters of the list of batches, and batches that are deleted."""

from urllib.parse import quote

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.db.models import LineResult, RequestLine
from app.keeper import Keeper
from app.lifecycle import TERMINAL, BatchStatus
from tests.app.api.conftest import Server
from tests.app.api.test_batches import create, move, refusal
from tests.app.api.test_errors import error_of
from tests.app.api.test_files import upload
from tests.app.db.jobs import set_columns, start_batch
from tests.app.steps import answer, claim_one, finish

S = BatchStatus


def listed(server: Server, query: str) -> list[str]:
    response = server.http("GET", f"/v1/batches?{query}")
    assert response.status_code == 200, response.text
    return [batch["id"] for batch in response.json()["data"]]


def metadata_query(key: str, value: str) -> str:
    return f"metadata[{quote(key, safe='')}]={quote(value, safe='')}"


def test_filter_by_status(server: Server) -> None:
    ids = {status: create(server).id for status in (S.VALIDATING, S.IN_PROGRESS, S.FAILED)}
    for status, batch_id in ids.items():
        move(server, batch_id, status)
    for status, batch_id in ids.items():
        assert listed(server, f"status={status}") == [batch_id]
    assert listed(server, "status=completed") == []


def test_filter_by_creation(server: Server) -> None:
    old, new = create(server), create(server)
    set_columns(server.database, old.id, created_at=1_000)
    assert listed(server, "created_after=1000") == [new.id]
    assert listed(server, "created_after=999") == [new.id, old.id]
    assert listed(server, f"created_after={new.created_at}") == []


def test_filter_by_metadata(server: Server) -> None:
    one = create(server, metadata={"team": "a", "job": "x"}).id
    two = create(server, metadata={"team": "a", "job": "y"}).id
    create(server, metadata={"job": "team"})
    create(server)
    assert listed(server, "metadata[team]=a") == [two, one]
    assert listed(server, "metadata[team]=a&metadata[job]=x") == [one]
    assert listed(server, "metadata[team]=a&metadata[job]=x&status=failed") == []
    assert listed(server, "metadata[team]=") == listed(server, "metadata[none]=a") == []
    assert listed(server, "metadata%5Bteam%5D=a&limit=1") == [two]
    assert listed(server, f"metadata[team]=a&limit=1&after={two}") == [one]
    pager = server.client.batches.list(limit=1, extra_query={"metadata[team]": "a"})
    assert [batch.id for batch in pager] == [two, one]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
HARD = st.sampled_from(['"', "'", "$", "$.a", 'a"b', "a.b", "[0]", "]", "%", "a\\", "\\u0041", "1", "é", ""])


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(key=TEXT | HARD, value=TEXT | HARD, other=TEXT | HARD)
def test_any_metadata_can_be_found(server: Server, key: str, value: str, other: str) -> None:
    """All examples share a server, so that each is looked for among many."""
    batch_id = create(server, metadata={other: ""} | {key: value}).id
    assert listed(server, metadata_query(key, value))[0] == batch_id
    assert batch_id not in listed(server, metadata_query(key, value + "x"))


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("status=done", "status"),
        ("created_after=-1", "created_after"),
        ("created_after=1e3", "created_after"),
        ("created_after=99999999999999999999", "created_after"),
        ("metadata[a]=b&metadata[a]=c", "metadata"),
        ("metadata[a]=%00", "metadata"),
        ("metadata[%00]=a", "metadata"),
    ],
)
def test_bad_filters(shared_server: Server, query: str, param: str) -> None:
    error = error_of(shared_server, "GET", f"/v1/batches?{query}", 400)
    assert (error["param"], error["code"]) == (param, "invalid_value")


def test_metadata_cannot_hold_nul(shared_server: Server) -> None:
    assert refusal(shared_server, metadata={"a": "\0"})["param"] == "metadata"
    assert refusal(shared_server, metadata={"\0": "a"})["param"] == "metadata"


def num_rows(server: Server) -> tuple[int, int]:
    with server.database.read() as session:
        counts = [
            session.scalars(select(func.count()).select_from(table)).one()
            for table in (RequestLine, LineResult)
        ]
    return counts[0], counts[1]


def test_deleting_a_batch_leaves_its_files(server: Server) -> None:
    batch_id, other_id = start_batch(server.database, 3), start_batch(server.database, 2)
    claim = claim_one(server.database)
    answer(server.database, claim, {"r1": True, "r2": False, "r3": True})
    finish(server.database, claim)
    Keeper(server.database, server.storage, server.settings).tick()
    output_file_id = server.client.batches.retrieve(batch_id).output_file_id or ""
    assert num_rows(server) == (5, 3)
    answer_of = server.http("DELETE", f"/v1/batches/{batch_id}")
    assert answer_of.json() == {"id": batch_id, "object": "batch", "deleted": True}
    assert num_rows(server) == (2, 0)
    assert listed(server, "") == [other_id]
    with pytest.raises(openai.NotFoundError):
        server.client.batches.retrieve(batch_id)
    error_of(server, "DELETE", f"/v1/batches/{batch_id}", 404)
    assert len(server.client.files.content(output_file_id).read().splitlines()) == 2


@pytest.mark.parametrize("status", list(BatchStatus))
def test_only_what_has_ended_can_be_deleted(shared_server: Server, status: BatchStatus) -> None:
    batch_id = create(shared_server).id
    move(shared_server, batch_id, status)
    if status in TERMINAL:
        assert shared_server.http("DELETE", f"/v1/batches/{batch_id}").status_code == 200
        return
    error = error_of(shared_server, "DELETE", f"/v1/batches/{batch_id}", 409)
    assert error["message"] == f"Cannot delete a batch with status '{status}'."
    assert shared_server.http("DELETE", f"/v1/batches/{batch_id}").headers["x-should-retry"] == "false"
    assert shared_server.client.batches.retrieve(batch_id).status == status


def test_an_input_is_free_once_its_batch_is_deleted(server: Server) -> None:
    file_id = upload(server)
    batch_id = create(server, input_file_id=file_id).id
    move(server, batch_id, S.FAILED)
    server.http("DELETE", f"/v1/batches/{batch_id}")
    assert server.client.files.delete(file_id).deleted


@pytest.mark.parametrize("batch_id", ["batch_none", "%00", "x" * 5_000])
def test_deleting_what_is_not_there(shared_server: Server, batch_id: str) -> None:
    error_of(shared_server, "DELETE", f"/v1/batches/{batch_id}", 404)
