"""Keys at the door: the SDK with a right, a wrong and no key; nothing of a body is read for a wrong one."""

import logging
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from sqlalchemy import text

from app.db.keys import create_key, revoke_key
from app.db.session import Database
from app.storage import Storage
from tests.app.api.conftest import Server, running
from tests.app.api.test_errors import error_of


def test_without_any_key_the_service_is_open(server: Server) -> None:
    assert server.client.files.list().data == []
    assert server.http("GET", "/v1/files").status_code == 200


def test_with_a_key_it_is_closed_to_everybody_else(server: Server) -> None:
    alice = server.client_of("alice")
    assert alice.files.list().data == []
    for client in (server.client, alice.with_options(api_key=f"{alice.api_key}x")):
        server.requests.clear()
        with pytest.raises(openai.AuthenticationError) as caught:
            client.files.list()
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
        assert len(server.requests) == 1
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("PUT", "/v1/files/x")):
        assert error_of(server, method, path, 401)["code"] == "invalid_api_key"
        error_of(server, method, path, 401, headers={"authorization": f"Basic {alice.api_key}"})
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert server.http("GET", path).status_code == 200


def test_a_revoked_key_ends_at_once_and_does_not_open_the_service(server: Server) -> None:
    with server.database.begin() as session:
        key, text_of_key = create_key(session, "alice")
    client = server.client.with_options(api_key=text_of_key)
    assert client.files.list().data == []
    with server.database.begin() as session:
        revoke_key(session, key.id)
    for who in (client, server.client):
        with pytest.raises(openai.AuthenticationError):
            who.files.list()


def test_with_keys_pages_elsewhere_need_one_too(server: Server) -> None:
    """A browser cannot guess a key, so a proxy in front may have any name."""
    alice = server.client_of("alice")
    headers = {"host": "batch.example", "authorization": f"Bearer {alice.api_key}"}
    assert server.http("GET", "/v1/files", headers=headers).status_code == 200
    error_of(server, "GET", "/v1/files", 401, headers={"host": "batch.example"})


def test_beyond_loopback_nothing_is_open(database: Database, storage: Storage, tmp_path: Path) -> None:
    with running(database, storage, tmp_path, host="0.0.0.0", allow_remote=True) as server:
        with pytest.raises(openai.AuthenticationError):
            server.client.files.list()
        assert server.client_of("alice").files.list().data == []


def test_the_answer_comes_before_the_body(server: Server) -> None:
    server.client_of("alice")
    address = urlsplit(server.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n"
            b"Authorization: Bearer wrong\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
    assert server.blob_names() == []


def test_the_sdk_understands_a_401_in_the_middle_of_an_upload(server: Server) -> None:
    server.client_of("alice")
    server.requests.clear()
    started = time.monotonic()
    with pytest.raises(openai.AuthenticationError):
        server.client.files.create(file=("a.jsonl", b"{}\n" * 10_000_000), purpose="batch")
    assert time.monotonic() - started < 20
    assert len(server.requests) == 1
    alice = server.client_of("alice")
    assert alice.files.list().data == []  # the connection, or a new one, goes on


def test_keys_are_in_no_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="app"), caplog.at_level(logging.DEBUG, logger="uvicorn"):
        alice = server.client_of("alice")
        alice.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        with server.database.begin() as session:
            session.execute(text("DROP TABLE files"))
        with pytest.raises(openai.InternalServerError):
            alice.with_options(max_retries=0).files.list()
    assert caplog.records
    assert alice.api_key not in caplog.text
    assert alice.api_key[-43:] not in caplog.text
