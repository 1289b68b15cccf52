"""Requests that are meant to hurt, sent byte by byte: each is refused or bounded, and the service goes on."""

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from app.api.guards import MAX_HEADERS, MAX_TARGET_BYTES, BodyPace
from app.api.protocol import BoundedHttp
from app.db.session import Database
from app.main import create_app
from app.settings import Settings
from app.storage import Storage
from tests.app.api.conftest import Server, listening
from tests.app.api.test_errors import JSON, error_of

FORM_HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
)
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"


@contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=60) as sock:
        yield sock


def answer_to(url: str, data: bytes, *, ends: bool = True) -> tuple[int, bytes]:
    """Status and body of the first answer; 0: the connection ended without one. `ends`: we end our side."""
    with connection(url) as sock:
        try:
            sock.sendall(data)
            if ends:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all of it was sent
        received = b""
        try:
            while chunk := sock.recv(1 << 16):
                received += chunk
        except ConnectionError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


def check_envelope(body: bytes) -> None:
    error = orjson.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}


def check_alive(server: Server) -> None:
    assert server.http("GET", "/v1/files?limit=1").status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/uploads", "/v1/uploads/x/parts"])
def test_encoded_bodies_are_refused_unread(shared_server: Server, path: str, encoding: str) -> None:
    bomb = gzip.compress(bytes(1 << 20))
    headers = {"content-encoding": encoding, **JSON}
    assert "encoding" in str(
        error_of(shared_server, "POST", path, 415, content=bomb, headers=headers)["message"]
    )
    identity = {"content-encoding": "identity", **JSON}
    error_of(shared_server, "POST", "/v1/batches", 400, content=b"{}", headers=identity)


def test_heads_that_are_too_long(shared_server: Server) -> None:
    error_of(shared_server, "GET", "/v1/files?x=" + "a" * MAX_TARGET_BYTES, 414)
    error_of(shared_server, "GET", "/v1/files", 431, headers={"x-long": "a" * 40_000})
    many = {f"x-{number}": "a" for number in range(MAX_HEADERS + 1)}
    error_of(shared_server, "GET", "/v1/files", 431, headers=many)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nx: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"x: " + b"a" * 600_000,
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_not_http(shared_server: Server, data: bytes) -> None:
    status, body = answer_to(shared_server.url, data)
    assert status in (0, 400, 501)  # 0: hung up on while it was still sending
    if body:
        check_envelope(body)
    check_alive(shared_server)


def test_a_body_longer_than_declared_is_no_second_request(shared_server: Server) -> None:
    data = b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    data += b"Content-Length: 2\r\n\r\n{}{}{}\r\n\r\n"
    status, answers = answer_to(shared_server.url, data, ends=False)
    assert status == 400
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 400 ") <= 1
    check_alive(shared_server)


def test_a_body_shorter_than_declared_leaves_nothing(server: Server) -> None:
    data = UPLOAD + b"Content-Length: 5000\r\n\r\n" + FORM_HEAD + b"{}"
    answer_to(server.url, data)
    assert server.client.files.list().data == []
    # The blob goes when the handler hears of it.
    for _ in range(2_000):
        if not server.blob_names():
            break
        threading.Event().wait(0.01)
    assert server.blob_names() == []


def test_a_form_around_the_file_has_an_end(server: Server) -> None:
    """What follows the closing boundary is part of no field, and would be taken in without end."""
    epilogue = b"x" * (1 << 16)
    chunk = b"%x\r\n%s\r\n" % (len(epilogue), epilogue)
    form = FORM_HEAD + b"{}\r\n--b--\r\n"
    data = (
        UPLOAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%s\r\n" % (len(form), form)
        + chunk * 60
        + b"0\r\n\r\n"
    )
    status, _ = answer_to(server.url, data, ends=False)
    assert status in (0, 413)
    assert server.client.files.list().data == []


@pytest.mark.parametrize("header", [b"x" * 100_000, b"x: " + b"y" * 100_000, b"a: b\r\n" * 1_000])
def test_headers_of_a_part_are_bounded(shared_server: Server, header: bytes) -> None:
    form = b"--b\r\n" + header + b"\r\n\r\nx\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    error_of(shared_server, "POST", "/v1/files", 400, content=form, headers=headers)


@pytest.mark.parametrize("name", ["../../etc/passwd.jsonl", "/etc/x.jsonl", "..\\..\\x.jsonl", "C:\\x.jsonl"])
def test_directories_in_a_file_name_are_dropped(server: Server, name: str) -> None:
    file = server.client.files.create(file=(name, b"{}"), purpose="batch")
    assert file.filename in ("passwd.jsonl", "x.jsonl")
    assert all(len(blob) == 32 for blob in server.blob_names())


def test_slow_bodies_are_ended(database: Database, storage: Storage, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=0, model_name="m")
    for pace in (BodyPace(idle_seconds=0.3), BodyPace(grace_seconds=0.3)):
        with listening(create_app(settings, database, storage, pace), settings) as url:
            data = UPLOAD + b"Content-Length: 5000\r\n\r\n" + FORM_HEAD
            status, body = answer_to(url, data, ends=False)
            assert status == 408
            check_envelope(body)
            assert list(storage.list_blobs()) == []
            json = b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            assert answer_to(url, json + b"Content-Length: 9\r\n\r\n{", ends=False)[0] == 408


def test_slow_heads_are_ended(
    database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedHttp, "head_seconds", 0.3)
    settings = Settings(data_dir=tmp_path, port=0, model_name="m")
    with listening(create_app(settings, database, storage), settings) as url:
        assert answer_to(url, b"", ends=False) == (0, b"")
        assert answer_to(url, b"GET /v1/files HTTP/1.1\r\nHost: loc", ends=False) == (0, b"")
        # After an answer the wait begins anew.
        first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert answer_to(url, first + b"GET /v1/files HTTP/1.1\r\nHo", ends=False)[0] == 200
