"""Two tenants on one server: whatever one sends, the other's things are as good as not there."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.routing import APIRoute, APIRouter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.batch_input import InputLine
from app.db.batches import transition
from app.db.files import create_file
from app.db.lines import add_request_lines
from app.db.models import Base, Batch, File, Owned
from app.db.usage import add_usage
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.main import create_app
from tests.app.api.conftest import Server

SECRET = "alice-only"
LINE = b'{"custom_id":"alice-only"}'


OWNED_TABLES = [mapper.local_table for mapper in Base.registry.mappers if issubclass(mapper.class_, Owned)]


@dataclass(frozen=True)
class Tenants:
    """`ids`: all that Alice has."""

    server: Server
    alice: openai.OpenAI
    bob: openai.OpenAI
    ids: Sequence[str]

    def send(self, who: openai.OpenAI, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {who.api_key}"}
        return self.server.http(method, path, headers=headers, **kwargs)

    def state_of_alice(self) -> list[dict[str, Any]]:
        rows = []
        with self.server.database.read() as session:
            for table in OWNED_TABLES:
                query = select(table).where(table.c.owner == "alice").order_by(*table.primary_key)
                rows += [dict(row._mapping) for row in session.execute(query)]
        kept = set(self.server.blob_names()) & {row.get("storage_key") for row in rows}
        return [*rows, {"blobs": kept}]


@pytest.fixture
def tenants(server: Server) -> Tenants:
    alice, bob = server.client_of("alice"), server.client_of("bob")
    file = alice.files.create(file=(f"{SECRET}.jsonl", LINE), purpose="batch")
    first, second = (
        alice.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"job": SECRET},
        )
        for _ in range(2)
    )
    with server.storage.create() as blob:
        blob.write(LINE)
        key = blob.commit()
    with server.database.begin() as session:
        output = create_file(
            session,
            owner="alice",
            purpose="batch_output",
            filename=f"{SECRET}.jsonl",
            num_bytes=len(LINE),
            storage_key=key,
            expires_seconds=None,
        )
        for old, new, columns in (
            (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, {"total": 1, "model": SECRET}),
            (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, {}),
            (BatchStatus.FINALIZING, BatchStatus.COMPLETED, {"completed": 1, "output_file_id": output.id}),
        ):
            assert transition(session, second.id, old, new, **columns)
        add_usage(session, second.id, requests=1, input_tokens=1, cached_tokens=0, output_tokens=1)
    upload = alice.uploads.create(
        bytes=4,
        filename=f"{SECRET}.jsonl",
        mime_type="application/jsonl",
        purpose="batch",
        extra_headers={"Idempotency-Key": SECRET},
    )
    part = alice.uploads.parts.create(upload.id, data=b"{}")
    hook = alice.webhooks.create(
        name=SECRET, url=f"https://example.com/{SECRET}", event_types=["batch.failed"]
    )
    ids = [file.id, first.id, second.id, output.id, upload.id, part.id, hook.id]
    return Tenants(server, alice, bob, ids)


def operations(server: Server) -> list[tuple[str, str]]:
    """Every method and path of the application's own table."""
    app = create_app(server.settings, server.database, server.storage)
    routes = list(_routes(app.router))
    assert len(routes) >= 13
    return [(method, route.path) for route in routes for method in sorted(route.methods)]


def _routes(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from _routes(included)


def twin(object_id: str) -> str:
    """An id like `object_id` that nothing has."""
    return object_id[:-1] + ("0" if object_id[-1] != "0" else "1")


def told(answer: httpx2.Response) -> str:
    """The body without the field in which a batch repeats what its maker sent: any id, hers too."""
    return re.sub(r'"input_file_id":"[^"]*"', "", answer.text)


def masked(answer: httpx2.Response, sent: dict[str, str]) -> tuple[int, str]:
    """Status and body without what differs between any two answers; `sent` are the ids of the request."""
    text = told(answer)
    for name, object_id in sent.items():
        text = text.replace(object_id, name)
    text = re.sub(r"(file-|batch_|upload_|part_|we_|req_)[0-9a-f]{32}", r"\1new", text)
    return answer.status_code, re.sub(r"\b1[0-9]{9}\b", "time", text)


QUERIES = st.dictionaries(st.sampled_from(["after", "purpose", "limit", "status"]), st.just("ID"), max_size=2)
BODIES = st.sampled_from(
    [
        {},
        {"json": {}},
        {"json": {"input_file_id": "ID", "endpoint": "/v1/completions", "completion_window": "24h"}},
        {"json": {"part_ids": ["ID"]}},
        {"files": {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}},
        {"files": {"data": ("upload", b"{}")}},
    ]
)


def with_id(value: Any, object_id: str) -> Any:
    if isinstance(value, dict):
        return {key: with_id(item, object_id) for key, item in value.items()}
    if isinstance(value, list):
        return [with_id(item, object_id) for item in value]
    return object_id if value == "ID" else value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_to_the_other_tenant_nothing_of_it_is_there(tenants: Tenants, data: st.DataObject) -> None:
    """A request with an id of Alice's is answered to Bob like the same with an id that nothing has."""
    before = tenants.state_of_alice()
    method, path = data.draw(st.sampled_from(operations(tenants.server)))
    query, body = data.draw(QUERIES), data.draw(BODIES)
    hers = data.draw(st.sampled_from(tenants.ids))
    answers = []
    for object_id in (hers, twin(hers)):
        answer = tenants.send(
            tenants.bob,
            method,
            re.sub(r"\{[^}]*\}", object_id, path),
            params=with_id(query, object_id),
            **with_id(body, object_id),
        )
        assert SECRET not in answer.text
        assert not [i for i in tenants.ids if i != hers and i in told(answer)]
        answers.append(masked(answer, {"ID": object_id}))
    assert answers[0] == answers[1]
    assert answers[0][0] < 500
    if "{" in path:
        assert answers[0][0] in (400, 404, 413, 415)
    assert tenants.state_of_alice() == before


# Good bodies for the routes that read one: what is refused below is then the id.
GOOD_BODIES: dict[str, dict[str, Any]] = {
    "/v1/uploads/{upload_id}/parts": {"files": {"data": ("upload", b"{}")}},
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": []}},
    "/v1/webhook_endpoints/{webhook_endpoint_id}": {"json": {}},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": {"json": {}},
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {"json": {"event_type": "batch.failed"}},
}


def test_every_route_answers_a_foreign_id_like_a_missing_one(tenants: Tenants) -> None:
    """All routes of the application that take an id, each with every id of Alice's: 404, the same body.

    A new route whose body has to be good for that needs an entry in GOOD_BODIES, or this fails.
    """
    before = tenants.state_of_alice()
    num_routes = 0
    for method, path in operations(tenants.server):
        if "{" not in path or "models" in path:
            continue
        num_routes += 1
        for hers in tenants.ids:
            told_of = []
            for object_id in (hers, twin(hers)):
                url = re.sub(r"\{[^}]*\}", object_id, path)
                answer = tenants.send(tenants.bob, method, url, **GOOD_BODIES.get(path, {}))
                assert answer.status_code == 404, (method, path, answer.text)
                told_of.append(answer.text.replace(object_id, "ID"))
            assert told_of[0] == told_of[1]
    assert num_routes >= 13
    assert tenants.state_of_alice() == before


def test_no_list_tells_of_another_tenant(tenants: Tenants) -> None:
    for method, path in operations(tenants.server):
        if method == "GET" and "{" not in path:
            answer = tenants.send(tenants.bob, method, path)
            assert answer.status_code == 200, (path, answer.text)
            assert SECRET not in answer.text, path
            assert not [object_id for object_id in tenants.ids if object_id in answer.text], path


def test_alice_has_one_of_every_kind(tenants: Tenants) -> None:
    """A new kind of object that belongs to a tenant has to be among what is kept apart here."""
    with tenants.server.database.read() as session:
        for table in OWNED_TABLES:
            rows = session.execute(select(table).where(table.c.owner == "alice")).all()
            assert rows, f"Alice has nothing in {table.name}"


def test_no_table_holds_a_key(tenants: Tenants) -> None:
    with tenants.server.database.read() as session:
        for table in Base.metadata.sorted_tables:
            rows = str(session.execute(select(table)).all())
            for who in (tenants.alice, tenants.bob):
                assert who.api_key[-43:] not in rows, table.name


def test_the_owner_herself_sees_all_of_it(tenants: Tenants) -> None:
    """Else the property above would say nothing."""
    listed = {file.id for file in tenants.alice.files.list()}
    listed |= {batch.id for batch in tenants.alice.batches.list()}
    assert listed == set(tenants.ids[:4])
    tenants.alice.uploads.parts.create(tenants.ids[4], data=b"\n\n")
    for method, path in operations(tenants.server):
        if method == "GET" and "{" in path and "models" not in path and "uploads" not in path:
            urls = [re.sub(r"\{[^}]*\}", object_id, path) for object_id in tenants.ids]
            statuses = [tenants.send(tenants.alice, "GET", url).status_code for url in urls]
            assert 200 in statuses, path
    assert tenants.bob.files.list().data == []
    assert tenants.bob.batches.list().data == []
    assert tenants.bob.webhooks.list().data == []


def test_paging_stays_within_a_tenant(tenants: Tenants) -> None:
    own = [tenants.bob.files.create(file=b"{}", purpose="batch").id for _ in range(3)]
    tenants.alice.files.create(file=b"{}", purpose="batch")
    assert [file.id for file in tenants.bob.files.list(limit=1, order="asc")] == own
    with pytest.raises(openai.BadRequestError, match="after"):
        tenants.bob.files.list(after=tenants.ids[0])


def test_another_tenants_file_is_no_input(tenants: Tenants, tmp_path: Path) -> None:
    batch = tenants.bob.batches.create(
        input_file_id=tenants.ids[0], endpoint="/v1/chat/completions", completion_window="24h"
    )
    server = tenants.server
    while tenants.bob.batches.retrieve(batch.id).status == "validating":
        Keeper(server.database, server.storage, server.settings).tick()
    failed = tenants.bob.batches.retrieve(batch.id)
    assert failed.errors is not None
    assert [(error.code, error.param) for error in failed.errors.data or []] == [
        ("invalid_request", "file_id")
    ]
    assert "Cannot find file" in str(failed.errors)
    assert SECRET not in str(failed)


def test_a_batchs_files_belong_to_its_owner(tenants: Tenants) -> None:
    server = tenants.server
    tenants.alice.batches.cancel(tenants.ids[1])
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    line["body"] = {"model": "org/tiny-model", "prompt": "x"}  # type: ignore[assignment]
    file = tenants.bob.files.create(
        file=httpx2.Request("POST", "http://x", json=line).content, purpose="batch"
    )
    batch = tenants.bob.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    keeper = Keeper(server.database, server.storage, server.settings)
    while tenants.bob.batches.retrieve(batch.id).status == "validating":
        keeper.tick()
    tenants.bob.batches.cancel(batch.id)
    keeper.tick()
    error_file_id = tenants.bob.batches.retrieve(batch.id).error_file_id
    assert error_file_id is not None
    assert "batch_cancelled" in tenants.bob.files.content(error_file_id).text
    with pytest.raises(openai.NotFoundError):
        tenants.alice.files.content(error_file_id)
    with server.database.read() as session:
        assert session.get_one(File, error_file_id).owner == session.get_one(Batch, batch.id).owner == "bob"


def test_a_retry_belongs_to_the_owner_of_its_batch(tenants: Tenants) -> None:
    server, old = tenants.server, tenants.ids[1]
    tenants.alice.batches.cancel(old)
    with server.database.begin() as session:
        add_request_lines(session, old, [InputLine(1, "a", 0, len(LINE), "m")])
        session.get_one(Batch, old).in_progress_at = 1
    Keeper(server.database, server.storage, server.settings).tick()
    assert tenants.send(tenants.bob, "POST", f"/v1/batches/{old}/retry").status_code == 404
    retry = tenants.send(tenants.alice, "POST", f"/v1/batches/{old}/retry").json()
    assert tenants.alice.batches.retrieve(retry["id"]).input_file_id == retry["input_file_id"]
    assert tenants.alice.files.content(retry["input_file_id"]).read() == LINE + b"\n"
    for get in (tenants.bob.batches.retrieve, tenants.bob.files.retrieve):
        with pytest.raises(openai.NotFoundError):
            get(retry["id"] if get == tenants.bob.batches.retrieve else retry["input_file_id"])
    with server.database.read() as session:
        assert session.get_one(Batch, retry["id"]).owner == "alice"
        assert session.get_one(File, retry["input_file_id"]).owner == "alice"


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "/v1/uploads"])
def test_an_idempotency_key_is_a_tenants_own(tenants: Tenants, path: str) -> None:
    batch = {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h"}
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 2, "mime_type": "text/plain"}
    content: dict[str, dict[str, Any]] = {
        "/v1/batches": {"json": batch},
        "/v1/uploads": {"json": upload},
        "/v1/files": {"files": {"purpose": (None, "batch"), "file": ("a.jsonl", b"{}")}},
    }
    ids = []
    for who in (tenants.alice, tenants.bob, tenants.alice, tenants.bob):
        headers = {"authorization": f"Bearer {who.api_key}", "idempotency-key": "k"}
        answer = tenants.server.http("POST", path, headers=headers, **content[path])
        assert answer.status_code == 200
        ids.append(answer.json()["id"])
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
