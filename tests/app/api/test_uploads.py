"""/v1/uploads through the SDK: parts in any order and side by side, every refusal, what is left behind."""

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Upload
from sqlalchemy import update

from app.api import uploads as handlers
from app.db import models
from tests.app.api.conftest import MAX_FILE_BYTES, MAX_PART_BYTES, Server
from tests.app.api.test_errors import error_of

CONTENT = b"".join(b'{"custom_id": "%d", "pad": "%s"}\n' % (i, b"x" * (i % 97)) for i in range(2_000))
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def begin(server: Server, num_bytes: int = len(CONTENT), **changes: Any) -> Upload:
    arguments: dict[str, Any] = {
        "filename": "in.jsonl",
        "purpose": "batch",
        "bytes": num_bytes,
        "mime_type": "application/jsonl",
    }
    return server.client.uploads.create(**(arguments | changes))


def add(server: Server, upload: Upload, data: bytes) -> str:
    return server.client.uploads.parts.create(upload.id, data=data).id


def pieces(content: bytes, *cuts: int) -> list[bytes]:
    edges = [0, *cuts, len(content)]
    return [content[start:stop] for start, stop in pairwise(edges)]


def refusal(call: Any, *arguments: Any, **changes: Any) -> dict[str, Any]:
    with pytest.raises(openai.BadRequestError) as caught:
        call(*arguments, **changes)
    assert isinstance(caught.value.body, dict)
    return caught.value.body


def set_upload(server: Server, upload: Upload, **columns: Any) -> None:
    with server.database.begin() as session:
        session.execute(update(models.Upload).where(models.Upload.id == upload.id).values(columns))


def test_the_sdk_s_helper(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(CONTENT)
    done = server.client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=33_333, md5=MD5
    )
    assert (done.object, done.status, done.bytes, done.purpose) == (
        "upload",
        "completed",
        len(CONTENT),
        "batch",
    )
    assert done.expires_at == done.created_at + 3_600
    assert done.file is not None
    assert (done.file.filename, done.file.bytes, done.file.status) == (
        "lines.jsonl",
        len(CONTENT),
        "processed",
    )
    assert done.file.expires_at == done.file.created_at + 30 * 86_400
    assert server.client.files.retrieve(done.file.id) == done.file
    assert [file.id for file in server.client.files.list()] == [done.file.id]
    assert server.client.files.content(done.file.id).read() == CONTENT
    assert len(server.blob_names()) == 1  # the parts are gone


def test_the_helper_takes_bytes(shared_server: Server) -> None:
    done = shared_server.client.uploads.upload_file_chunked(
        file=CONTENT, filename="upload", bytes=len(CONTENT), mime_type="text/plain", purpose="batch"
    )
    assert done.file is not None
    assert shared_server.client.files.content(done.file.id).read() == CONTENT


def test_three_odd_parts_in_reversed_order(server: Server) -> None:
    upload = begin(server, expires_after={"anchor": "created_at", "seconds": 3_600})
    assert (upload.status, upload.file, upload.filename) == ("pending", None, "in.jsonl")
    part_ids = [add(server, upload, data) for data in reversed(pieces(CONTENT, 7, 50_001))]
    done = server.client.uploads.complete(upload.id, part_ids=part_ids[::-1], md5=MD5.upper())
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 3_600
    assert server.client.files.content(done.file.id).read() == CONTENT


def test_parts_side_by_side(server: Server) -> None:
    cuts = sorted(random.Random(5).sample(range(1, len(CONTENT)), 11))
    upload = begin(server)
    with ThreadPoolExecutor(6) as pool:
        part_ids = list(pool.map(lambda data: add(server, upload, data), pieces(CONTENT, *cuts)))
    done = server.client.uploads.complete(upload.id, part_ids=part_ids, md5=MD5)
    assert done.file is not None
    assert server.client.files.content(done.file.id).read() == CONTENT


def test_parts_that_are_not_named_are_dropped(server: Server) -> None:
    upload = begin(server)
    first, _, last = (add(server, upload, data) for data in (CONTENT[:9], b"sent again", CONTENT[9:]))
    server.client.uploads.complete(upload.id, part_ids=[first, last])
    assert len(server.blob_names()) == 1


def test_a_refused_completion_can_be_tried_again(server: Server) -> None:
    complete = server.client.uploads.complete
    upload, other = begin(server), begin(server)
    first, last = (add(server, upload, data) for data in pieces(CONTENT, 100))
    foreign = add(server, other, CONTENT[100:])
    for part_ids in ([first, "part_none"], [first, foreign], [first, first, last]):
        body = refusal(complete, upload.id, part_ids=part_ids)
        assert (body["param"], body["code"]) == ("part_ids", "invalid_value")
    for part_ids in ([], [first]):
        body = refusal(complete, upload.id, part_ids=part_ids)
        assert (body["param"], body["code"]) == ("bytes", "invalid_value")
    body = refusal(complete, upload.id, part_ids=[first, last], md5="0" * 32)
    assert (body["param"], body["code"]) == ("md5", "invalid_value")
    assert MD5 in body["message"]
    assert refusal(complete, upload.id, part_ids=[first, last], md5="none")["param"] == "md5"
    body = refusal(complete, upload.id, part_ids=[last, first])  # does not begin with a line
    assert body["message"] == "Invalid file format for Batch API. Must be .jsonl"
    assert len(server.blob_names()) == 3
    assert complete(upload.id, part_ids=[first, last], md5=MD5).status == "completed"


def test_completing_twice(server: Server) -> None:
    upload = begin(server)
    part_id = add(server, upload, CONTENT)
    server.client.uploads.complete(upload.id, part_ids=[part_id])
    body = refusal(server.client.uploads.complete, upload.id, part_ids=[part_id])
    assert body["message"] == "Upload is not pending: its status is 'completed'."
    assert len(list(server.client.files.list())) == 1


def test_completing_at_once(server: Server) -> None:
    """All of them copy; one of them makes the file."""
    upload = begin(server)
    part_ids = [add(server, upload, data) for data in pieces(CONTENT, 5)]
    ready = threading.Barrier(4)

    def complete(_: int) -> str:
        ready.wait()
        try:
            return server.client.uploads.complete(upload.id, part_ids=part_ids).status
        except openai.BadRequestError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(complete, range(4)))
    assert answers.count("completed") == 1
    assert sum("Upload is not pending" in answer for answer in answers) == 3
    assert len(list(server.client.files.list())) == 1
    assert len(server.blob_names()) == 1


def test_cancelling_during_a_completion(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = begin(server)
    part_ids = [add(server, upload, data) for data in pieces(CONTENT, 5)]
    join = handlers._join

    def cancel_first(*arguments: Any) -> None:
        server.client.uploads.cancel(upload.id)
        join(*arguments)

    monkeypatch.setattr(handlers, "_join", cancel_first)
    body = refusal(server.client.uploads.complete, upload.id, part_ids=part_ids)
    assert body["message"] == "Upload is not pending: its status is 'cancelled'."
    assert server.blob_names() == []


def test_nothing_goes_into_a_cancelled_upload(server: Server) -> None:
    upload = begin(server)
    part_id = add(server, upload, CONTENT)
    cancelled = server.client.uploads.cancel(upload.id)
    assert (cancelled.id, cancelled.status, cancelled.file) == (upload.id, "cancelled", None)
    assert server.blob_names() == []
    uploads = server.client.uploads
    message = "Upload is not pending: its status is 'cancelled'."
    assert refusal(uploads.parts.create, upload.id, data=b"{}")["message"] == message
    assert refusal(uploads.complete, upload.id, part_ids=[part_id])["message"] == message
    assert refusal(uploads.cancel, upload.id)["message"] == message
    assert server.blob_names() == []


def test_nothing_goes_into_an_expired_upload(server: Server) -> None:
    upload = begin(server)
    part_id = add(server, upload, CONTENT)
    set_upload(server, upload, expires_at=upload.created_at)
    uploads = server.client.uploads
    message = "Upload is not pending: its status is 'expired'."
    assert refusal(uploads.parts.create, upload.id, data=b"{}")["message"] == message
    assert refusal(uploads.complete, upload.id, part_ids=[part_id])["message"] == message
    assert refusal(uploads.cancel, upload.id)["message"] == message


def test_an_unknown_upload(shared_server: Server) -> None:
    uploads = shared_server.client.uploads
    for upload_id in ("upload_none", "x" * 5_000, "\x00"):
        for call in (
            lambda name: uploads.parts.create(name, data=b"{}"),
            lambda name: uploads.complete(name, part_ids=[]),
            uploads.cancel,
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                call(upload_id)
            assert isinstance(caught.value.body, dict)
            assert caught.value.body["message"] == f"No such Upload object: {upload_id}"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"purpose": "vision"}, "purpose", "invalid_value"),
        ({"bytes": 0}, "bytes", "invalid_value"),
        ({"bytes": MAX_FILE_BYTES + 1}, "bytes", "invalid_value"),
        ({"bytes": "7"}, "bytes", "invalid_type"),
        ({"bytes": openai.omit}, "bytes", "missing_required_parameter"),
        ({"mime_type": openai.omit}, "mime_type", "missing_required_parameter"),
        ({"filename": "in.csv"}, None, None),
        ({"filename": "in\x00.jsonl"}, "filename", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3}}, "expires_after.seconds", "invalid_value"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
    ],
)
def test_uploads_that_cannot_begin(
    shared_server: Server, changes: dict[str, Any], param: str | None, code: str | None
) -> None:
    body = refusal(begin, shared_server, **changes)
    assert (body["param"], body["code"]) == (param, code)


def test_a_part_that_is_too_large(server: Server) -> None:
    upload = begin(server, MAX_FILE_BYTES)
    add(server, upload, b"x" * MAX_PART_BYTES)
    kept = server.blob_names()
    for excess in (1, 200_000):
        server.requests.clear()
        with pytest.raises(openai.APIStatusError) as caught:
            add(server, upload, b"x" * (MAX_PART_BYTES + excess))
        assert caught.value.status_code == 413
        assert caught.value.body == {
            "message": f"The data is larger than the limit of {MAX_PART_BYTES} bytes.",
            "type": "invalid_request_error",
            "param": "data",
            "code": None,
        }
        assert len(server.requests) == 1
    assert server.blob_names() == kept


def test_parts_cannot_fill_the_disk(server: Server) -> None:
    upload = begin(server, 1)
    add(server, upload, b"x" * MAX_PART_BYTES)
    add(server, upload, b"x")
    body = refusal(add, server, upload, b"xx")
    assert (body["param"], body["code"]) == ("data", "invalid_value")
    assert len(server.blob_names()) == 2


def test_parts_that_are_no_form_or_have_other_fields(shared_server: Server) -> None:
    path = f"/v1/uploads/{begin(shared_server).id}/parts"
    error_of(shared_server, "POST", path, 415, content=b"{}")
    assert error_of(shared_server, "POST", path, 400, files={"file": b"{}"})["param"] == "file"
    text = {"data": (None, "{}")}
    assert error_of(shared_server, "POST", path, 400, files=text)["code"] == "invalid_type"
    nothing = {"content": b"--b--\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}}
    assert error_of(shared_server, "POST", path, 400, **nothing)["param"] == "data"
