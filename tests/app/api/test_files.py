"""/v1/files through the SDK, and what only raw HTTP can do to it."""

import io
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from app.db import files
from app.storage import BlobNotFound
from tests.app.api.conftest import MAX_FILE_BYTES, Server

LINES = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{}}\r\n\n{"custom_id":"b"}'


def upload(server: Server, content: bytes = LINES, name: str = "in.jsonl") -> str:
    return server.client.files.create(file=(name, content), purpose="batch").id


def test_upload_by_path_bytes_tuple_and_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(LINES)
    with path.open("rb") as file:
        uploads = {
            "lines.jsonl": server.client.files.create(file=path, purpose="batch"),
            "upload": server.client.files.create(file=LINES, purpose="batch"),
            "tuple.jsonl": server.client.files.create(file=("tuple.jsonl", LINES), purpose="batch"),
            "lines.jsonl ": server.client.files.create(file=file, purpose="batch"),
        }
    for name, created in uploads.items():
        assert created.filename == name.strip()
        assert (created.object, created.purpose, created.status) == ("file", "batch", "processed")
        assert created.bytes == len(LINES)
        assert created.expires_at == created.created_at + 30 * 86_400
        assert server.client.files.retrieve(created.id) == created
        assert server.client.files.content(created.id).read() == LINES


def test_a_large_file_comes_back_unchanged(server: Server) -> None:
    content = b"".join(b'{"custom_id": "%d", "pad": "%s"}\n' % (i, b"x" * (i % 999)) for i in range(5_000))
    assert 2 << 20 < len(content) < MAX_FILE_BYTES
    assert server.client.files.content(upload(server, content)).read() == content


def test_expires_after_is_kept(shared_server: Server) -> None:
    created = shared_server.client.files.create(
        file=("a.jsonl", LINES), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3_600}
    )
    assert created.expires_at == created.created_at + 3_600


def test_an_expired_file_is_gone(server: Server) -> None:
    file_id = upload(server)
    with server.database.begin() as session:
        row = files.get_file(session, file_id)
        assert row is not None
        row.expires_at = row.created_at
    for call in (server.client.files.retrieve, server.client.files.content, server.client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file_id)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_paging_by_one_meets_every_file_once(server: Server, order: str) -> None:
    expected = [upload(server) for _ in range(5)]
    if order == "desc":
        expected.reverse()
    met = []
    for file in server.client.files.list(limit=1, order=order):  # type: ignore[arg-type]
        met.append(file.id)
        if len(met) == 2 and order == "desc":
            upload(server)  # newer than the cursor: not met, and nothing is met twice
    assert met == expected


def test_list_shape(server: Server) -> None:
    assert server.http("GET", "/v1/files").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    ids = [upload(server) for _ in range(3)]
    page = server.http("GET", "/v1/files?limit=2&purpose=batch").json()
    assert [file["id"] for file in page["data"]] == [ids[2], ids[1]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    assert server.http("GET", "/v1/files?purpose=batch_output").json()["data"] == []


def test_delete_removes_row_and_blob(server: Server) -> None:
    file_id = upload(server)
    deleted = server.client.files.delete(file_id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file_id, "file", True)
    assert server.blob_names() == []
    for call in (server.client.files.retrieve, server.client.files.content, server.client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file_id)
        assert caught.value.body == {
            "message": f"No such File object: {file_id}",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }


def test_the_input_of_a_running_batch_stays(server: Server) -> None:
    file_id = upload(server)
    server.client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h")
    server.requests.clear()
    with pytest.raises(openai.ConflictError) as caught:
        server.client.files.delete(file_id)
    assert caught.value.code == "file_in_use"
    assert len(server.requests) == 1
    assert server.client.files.content(file_id).read() == LINES


def test_download_headers_ranges_and_head(shared_server: Server) -> None:
    path = f"/v1/files/{upload(shared_server)}/content"
    whole = shared_server.http("GET", path)
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-length"] == str(len(LINES))
    assert whole.headers["content-disposition"] == 'attachment; filename="in.jsonl"'
    head = shared_server.http("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(LINES))
    for header, expected in {
        "bytes=0-0": LINES[:1],
        "bytes=5-9": LINES[5:10],
        "bytes=70-": LINES[70:],
        "bytes=-7": LINES[-7:],
        "bytes=60-9999": LINES[60:],
    }.items():
        part = shared_server.http("GET", path, headers={"range": header})
        assert (part.status_code, part.content) == (206, expected)
        assert part.headers["content-range"].endswith(f"/{len(LINES)}")
    for header in ("bytes=9-5", "lines=0-1", "bytes=0-1,3-4", "bytes=-"):
        assert shared_server.http("GET", path, headers={"range": header}).content == LINES
    for header in ("bytes=999-", "bytes=-0"):
        beyond = shared_server.http("GET", path, headers={"range": header})
        assert beyond.status_code == 416
        assert beyond.json()["error"]["type"] == "invalid_request_error"
        assert beyond.headers["content-range"] == f"bytes */{len(LINES)}"
    unchanged = shared_server.http("GET", path, headers={"if-none-match": whole.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    stale = shared_server.http("GET", path, headers={"range": "bytes=0-0", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, LINES)


def test_a_name_beyond_ascii(shared_server: Server) -> None:
    file_id = upload(shared_server, name='größe "x".jsonl')
    disposition = shared_server.http("GET", f"/v1/files/{file_id}/content").headers["content-disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''gr%C3%B6%C3%9Fe")


def test_too_large_is_a_413_after_one_request_and_leaves_nothing(server: Server) -> None:
    exact = b"{}\n".ljust(MAX_FILE_BYTES)
    assert server.client.files.create(file=("a.jsonl", exact), purpose="batch").bytes == MAX_FILE_BYTES
    kept = server.blob_names()
    for excess in (1, 200_000):
        server.requests.clear()
        with pytest.raises(openai.APIStatusError) as caught:
            server.client.files.create(file=("a.jsonl", exact + b" " * excess), purpose="batch")
        assert caught.value.status_code == 413
        assert caught.value.type == "invalid_request_error"
        assert len(server.requests) == 1
    assert server.blob_names() == kept


def test_too_large_without_a_declared_length(server: Server) -> None:
    def endless() -> object:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\n'
        for _ in range(64):
            yield b" " * (64 << 10)

    answer = server.http(
        "POST",
        "/v1/files",
        content=endless(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "file"
    assert server.blob_names() == []


@pytest.mark.parametrize(("name", "content"), [("in.csv", LINES), ("in.jsonl", b""), ("in.jsonl", b"a,b\n")])
def test_what_is_not_jsonl_is_refused(shared_server: Server, name: str, content: bytes) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shared_server.client.files.create(file=(name, content), purpose="batch")
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["message"] == "Invalid file format for Batch API. Must be .jsonl"


def test_file_part_first_and_purpose_missing(server: Server) -> None:
    parts = [("file", ("a.jsonl", io.BytesIO(LINES))), ("purpose", (None, "batch"))]
    created = server.http("POST", "/v1/files/", files=parts)  # with a slash: no redirect
    assert created.status_code == 200
    refused = server.http("POST", "/v1/files", files=parts[:1])
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "missing_required_parameter"
    assert refused.json()["error"]["param"] == "purpose"
    assert len(server.blob_names()) == 1


def test_other_purposes_are_refused(shared_server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shared_server.client.files.create(file=("a.jsonl", LINES), purpose="vision")
    assert (caught.value.param, caught.value.code) == ("purpose", "invalid_value")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("application/json", 415), ("multipart/form-data", 400), ("multipart/form-data; boundary=b", 400)],
)
def test_bodies_that_are_no_form(shared_server: Server, content_type: str, status: int) -> None:
    answer = shared_server.http("POST", "/v1/files", content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_client_that_goes_away_leaves_no_blob(server: Server) -> None:
    address = urlsplit(server.url)
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2500000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\n'
    )
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0)) as connection:
        connection.sendall(head.encode() + b" " * 1_200_000)
        wait_until(lambda: len(server.blob_names()) == 1)
    wait_until(lambda: server.blob_names() == [])
    assert server.http("GET", "/v1/files").json()["data"] == []


def test_a_row_whose_blob_is_lost_is_an_error_in_the_envelope(server: Server) -> None:
    file_id = upload(server)
    with server.database.read() as session:
        row = files.get_file(session, file_id)
        assert row is not None
        server.storage.delete(row.storage_key)
    with pytest.raises(BlobNotFound):
        server.storage.open(row.storage_key)
    answer = server.http("GET", f"/v1/files/{file_id}/content")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


def wait_until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
