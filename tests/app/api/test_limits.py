"""Limits as the SDK meets them: it waits for a rate limit, not for a quota; and /v1/usage."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from sqlalchemy import event, update

from app.db.leases import release
from app.db.limits import set_limits
from app.db.models import RequestWindow
from app.db.session import Database
from app.keeper import Keeper
from app.storage import Storage
from tests.app.api.conftest import Server, running
from tests.app.steps import answer, claim_one, request

CHAT = "/v1/chat/completions"


@pytest.fixture
def limited(database: Database, storage: Storage, tmp_path: Path) -> Iterator[Server]:
    """A server with limits for all."""
    limits: dict[str, Any] = {
        "max_requests_per_minute": 20,
        "max_stored_bytes": 1_000,
        "max_enqueued_tokens": 600,
        "max_enqueued_requests": 4,
    }
    with running(database, storage, tmp_path / "data", model_name="m", **limits) as server:
        yield server


def forget_requests(server: Server) -> None:
    with server.database.begin() as session:
        session.execute(update(RequestWindow).values(minute=RequestWindow.minute - 1))


def use_up(server: Server, **headers: str) -> None:
    """All requests of a minute that lasts for a while yet."""
    left = server.http("GET", "/v1/models", headers=headers).headers["x-ratelimit-reset-requests"]
    if int(left.removesuffix("s")) < 5:
        time.sleep(5)
    while server.http("GET", "/v1/models", headers=headers).status_code == 200:
        continue


def submit(client: openai.OpenAI, *lines: bytes) -> str:
    file = client.files.create(file=b"\n".join(lines), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id


def chat(custom_id: str, **parameters: Any) -> bytes:
    return request(custom_id, body={"model": "m", "messages": [], **parameters})


def test_the_rate_limit(limited: Server) -> None:
    shown = limited.http("GET", "/v1/files").headers
    assert shown["x-ratelimit-limit-requests"] == "20"
    assert shown["x-ratelimit-remaining-requests"] == "19"
    assert shown["x-ratelimit-reset-requests"].endswith("s")
    use_up(limited)
    refused = limited.http("GET", "/v1/files")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert limited.http("GET", "/healthz").status_code == 200
    limited.requests.clear()
    with pytest.raises(openai.RateLimitError) as caught:
        limited.client.with_options(max_retries=0).files.list()
    assert caught.value.code == "rate_limit_exceeded"
    forget_requests(limited)
    assert limited.client.files.list().data == []


def test_a_refusal_comes_before_the_body(limited: Server) -> None:
    use_up(limited)
    address = urlsplit(limited.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 429 ")
    assert limited.blob_names() == []


def test_each_tenant_has_its_own(limited: Server) -> None:
    alice, bob = limited.client_of("alice"), limited.client_of("bob")
    with limited.database.begin() as session:
        set_limits(session, "alice", {"max_requests_per_minute": 2})
    use_up(limited, authorization=f"Bearer {alice.api_key}")
    with pytest.raises(openai.RateLimitError):
        alice.with_options(max_retries=0).files.list()
    assert bob.files.list().data == []


def test_stored_bytes(limited: Server) -> None:
    client = limited.client
    line = b'{"a": 1}\n'
    kept = client.files.create(file=line * 60, purpose="batch")
    limited.requests.clear()
    for refused in (
        lambda: client.files.create(file=line * 60, purpose="batch"),
        lambda: client.files.create(file=line * 10_000, purpose="batch"),  # its length alone tells
        lambda: client.uploads.create(bytes=600, filename="a.jsonl", mime_type="a/b", purpose="batch"),
    ):
        with pytest.raises(openai.RateLimitError) as caught:
            refused()
        assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
        assert "1,000" in caught.value.message
    assert len(limited.requests) == 3  # waiting would not help, so the SDK does not
    assert len(limited.blob_names()) == 1
    upload = client.uploads.create(bytes=400, filename="a.jsonl", mime_type="a/b", purpose="batch")
    client.uploads.parts.create(upload.id, data=line * 40)
    with pytest.raises(openai.RateLimitError):
        client.uploads.parts.create(upload.id, data=line * 40)
    assert limited.http("GET", "/v1/usage").json()["stored_bytes"] == 540 + 400
    client.uploads.cancel(upload.id)
    client.files.delete(kept.id)
    client.files.create(file=line * 100, purpose="batch")


def test_a_repeated_upload_under_a_key_is_no_second_file(limited: Server) -> None:
    headers = {"Idempotency-Key": "k"}
    ids = {
        limited.client.files.create(file=b"{}\n" * 300, purpose="batch", extra_headers=headers).id
        for _ in range(2)
    }
    assert len(ids) == 1


def test_enqueued_tokens_and_requests(limited: Server) -> None:
    """n x max_tokens counts; over the limit a batch fails in its validation, and later ones may start."""
    keeper = Keeper(limited.database, limited.storage, limited.settings)
    client = limited.client
    first = submit(client, chat("a", n=2, max_tokens=200))
    second = submit(client, chat("a", n=1, max_tokens=200))
    many = submit(client, *(chat(str(n), max_tokens=1) for n in range(4)))
    while any(client.batches.retrieve(batch).status == "validating" for batch in (first, second, many)):
        keeper.tick()
    assert client.batches.retrieve(first).status == "in_progress"
    forget_requests(limited)
    for batch_id, code, limit in (
        (second, "token_limit_exceeded", "600"),
        (many, "request_limit_exceeded", "4"),
    ):
        failed = client.batches.retrieve(batch_id)
        assert failed.status == "failed"
        assert failed.errors is not None
        (error,) = failed.errors.data or []
        assert (error.code, error.line, error.param) == (code, None, None)
        assert f"Limit: {limit} enqueued" in str(error.message)
    usage = limited.http("GET", "/v1/usage").json()
    assert usage["enqueued_requests"] == 1
    assert 400 < usage["enqueued_tokens"] < 500
    client.batches.cancel(first)
    keeper.tick()
    again = submit(client, chat("a", n=1, max_tokens=200))
    keeper.tick()
    assert client.batches.retrieve(again).status == "in_progress"


def test_usage_outlives_its_batch(server: Server) -> None:
    body = {"model": "org/tiny-model", "messages": []}
    batch_id = submit(server.client, request("a", body=body), request("b", body=body))
    keeper = Keeper(server.database, server.storage, server.settings)
    keeper.tick()
    claim = claim_one(server.database)
    answer(server.database, claim, {"a": True})
    answer(server.database, claim, {"b": False})
    server.client.batches.cancel(batch_id)
    with server.database.begin() as session:
        release(session, claim)
    keeper.tick()
    assert server.http("DELETE", f"/v1/batches/{batch_id}").status_code == 200
    report = server.http("GET", "/v1/usage?days=2").json()
    (day,) = report["data"]
    assert day.pop("date").startswith("20")
    assert day == {
        "model": "org/tiny-model",
        "requests": 2,
        "input_tokens": 2,
        "cached_tokens": 0,
        "output_tokens": 2,
    }
    assert report["limits"]["max_stored_bytes"] is None
    assert report["limits"]["max_requests_per_batch"] == 50_000
    assert server.client_of("alice").get("/usage", cast_to=dict)["data"] == []  # type: ignore[type-var]


def test_without_a_limit_nothing_more_is_asked(server: Server) -> None:
    """Of the database: one statement finds tenant and limits, and the rest is the request's own."""
    alice = server.client_of("alice")
    statements: list[str] = []
    listen = lambda *args: statements.append(args[2])  # noqa: E731
    event.listen(server.database.engine, "before_cursor_execute", listen)
    alice.models.list()
    assert len([text for text in statements if not text.startswith("BEGIN")]) == 1, statements
    event.remove(server.database.engine, "before_cursor_execute", listen)
