"""Points 1, 2, 3 and 14 of the wire contract: the SDK against real processes, on both databases."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from sqlalchemy import update

from app.db.files import create_file
from app.db.models import File, Upload
from app.storage import DirectoryStorage
from tests.live import Live, as_file, line

CONTENT = as_file([line(f"r{number}") for number in range(50)])
DAY_SECONDS = 86_400
GIGABYTE = 1 << 30


def refusal(status: int, call: Callable[..., object], *arguments: Any, **given: Any) -> dict[str, Any]:
    """The error of a call that the service refuses with `status`."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(*arguments, **given)
    assert caught.value.status_code == status
    assert caught.value.request_id
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value.body


def test_1_every_way_to_upload(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(CONTENT)
    expiry: Any = {"anchor": "created_at", "seconds": 3_600}
    by_path = client.files.create(file=path, purpose="batch")
    named = client.files.create(file=("other.jsonl", CONTENT), purpose="batch", expires_after=expiry)
    raw = client.files.create(file=CONTENT, purpose="batch")
    assert [file.filename for file in (by_path, named, raw)] == ["in.jsonl", "other.jsonl", "upload"]
    for file, seconds in ((by_path, 30 * DAY_SECONDS), (named, 3_600), (raw, 30 * DAY_SECONDS)):
        assert (file.bytes, file.purpose, file.status) == (len(CONTENT), "batch", "processed")
        assert file.expires_at == file.created_at + seconds
        assert client.files.content(file.id).read() == CONTENT
        assert client.files.retrieve(file.id) == file


def test_1_what_is_no_batch_file(live: Live, client: openai.OpenAI) -> None:
    create = client.files.create
    for name, content in (("in.csv", CONTENT), ("in.jsonl", b""), ("in.jsonl", b"a,b\n")):
        error = refusal(400, create, file=(name, content), purpose="batch")
        assert error["message"] == "Invalid file format for Batch API. Must be .jsonl"
    too_large = CONTENT.ljust(200_000_001)
    assert refusal(413, create, file=("in.jsonl", too_large), purpose="batch")["param"] == "file"
    parts: Any = [("file", ("in.jsonl", CONTENT)), ("purpose", (None, "batch"))]
    assert live.http(client, "POST", "/v1/files", files=parts).status_code == 200
    refused = live.http(client, "POST", "/v1/files", files=parts[:1])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "purpose")
    assert len(client.files.list().data) == 1


def test_2_pages(live: Live, client: openai.OpenAI) -> None:
    ids = [client.files.create(file=("a.jsonl", CONTENT), purpose="batch").id for _ in range(4)]
    assert [file.id for file in client.files.list(limit=1)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=1, order="asc")] == ids
    assert [file.id for file in client.files.list(purpose="batch", limit=3)] == ids[::-1]
    assert list(client.files.list(purpose="batch_output")) == []
    seen = []
    for file in client.files.list(limit=1):
        seen.append(file.id)
        client.files.create(file=("b.jsonl", CONTENT), purpose="batch")
    assert seen == ids[::-1]
    refusal(400, client.files.list, after="file-none")


def test_3_uploads_in_parts(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(CONTENT)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    size = len(CONTENT) // 3 + 7
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=size, md5=md5
    )
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == CONTENT

    def begin(num_bytes: int = len(CONTENT)) -> str:
        return client.uploads.create(
            filename="in.jsonl", purpose="batch", bytes=num_bytes, mime_type="application/jsonl"
        ).id

    upload_id = begin()
    pieces = [CONTENT[:11], CONTENT[11:1_000], CONTENT[1_000:]]
    part_ids = [client.uploads.parts.create(upload_id, data=data).id for data in reversed(pieces)][::-1]
    complete = client.uploads.complete
    assert refusal(400, complete, upload_id, part_ids=part_ids, md5="0" * 32)["param"] == "md5"
    assert refusal(400, complete, upload_id, part_ids=part_ids[:2])["param"] == "bytes"
    assert refusal(400, complete, upload_id, part_ids=["part_none"])["param"] == "part_ids"
    file = complete(upload_id, part_ids=part_ids, md5=md5).file
    assert file is not None
    assert client.files.content(file.id).read() == CONTENT
    refusal(400, complete, upload_id, part_ids=part_ids)
    refusal(400, client.uploads.parts.create, upload_id, data=b"{}")


def test_3_uploads_that_end_early(live: Live, client: openai.OpenAI) -> None:
    given: Any = {"filename": "in.jsonl", "purpose": "batch", "bytes": 9, "mime_type": "application/jsonl"}
    cancelled, expired = client.uploads.create(**given), client.uploads.create(**given)
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    with live.database.begin() as session:
        session.execute(update(Upload).where(Upload.id == expired.id).values(expires_at=1))
    for upload in (cancelled, expired):
        refusal(400, client.uploads.parts.create, upload.id, data=b"{}")
        refusal(400, client.uploads.complete, upload.id, part_ids=[])
    refusal(404, client.uploads.parts.create, "upload_none", data=b"{}")


def test_14_downloads(live: Live, client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
    answer = client.files.content(file.id)  # the SDK accepts application/binary
    headers = answer.response.headers
    assert (answer.read(), headers["content-type"]) == (CONTENT, "application/octet-stream")
    assert headers["content-length"] == str(len(CONTENT))
    assert headers["content-disposition"] == 'attachment; filename="in.jsonl"'
    path = f"/v1/files/{file.id}/content"
    part = live.http(client, "GET", path, headers={"range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, CONTENT[5:10])
    assert part.headers["content-range"] == f"bytes 5-9/{len(CONTENT)}"
    known = live.http(client, "GET", path, headers={"if-none-match": headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = live.http(client, "HEAD", path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
    with live.database.begin() as session:
        session.execute(update(File).where(File.id == file.id).values(expires_at=1))
    assert refusal(404, client.files.content, file.id)["param"] == "id"
    refusal(404, client.files.retrieve, file.id)


@pytest.mark.long
def test_14_a_gigabyte_in_flat_memory(live: Live, client: openai.OpenAI) -> None:
    """Of a sparse file: what the api holds of it is what counts, not the disk."""
    own = client.files.create(file=("in.jsonl", CONTENT), purpose="batch")
    with live.database.begin() as session:
        owner = session.get_one(File, own.id).owner
    storage = DirectoryStorage(live.service.data_dir)
    with storage.create() as blob:
        key = blob.commit()
    os.truncate(storage.directory / key, GIGABYTE)
    with live.database.begin() as session:
        file_id = create_file(
            session,
            owner=owner,
            purpose="batch_output",
            filename="large.jsonl",
            num_bytes=GIGABYTE,
            storage_key=key,
            expires_seconds=None,
        ).id
    api = live.process("api")
    before, peak, num_bytes = _resident(api), 0, 0
    with client.files.with_streaming_response.content(file_id) as answer:
        for number, piece in enumerate(answer.iter_bytes(1 << 20)):
            num_bytes += len(piece)
            if number % 16 == 0:
                peak = max(peak, _resident(api))
    assert num_bytes == GIGABYTE
    assert peak < 200 << 20
    assert peak - before < 32 << 20
    client.files.delete(file_id)


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def test_a_slow_reader_holds_nothing_up(live: Live, client: openai.OpenAI) -> None:
    file = client.files.create(file=("in.jsonl", CONTENT.ljust(8_000_000)), purpose="batch")
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx2.stream("GET", f"{live.service.url}/v1/files/{file.id}/content", headers=headers) as slow:
        pieces = slow.iter_bytes(1_000)
        assert next(pieces) == CONTENT[:1_000]
        time.sleep(0.2)
        assert client.files.retrieve(file.id) == file
        client.files.delete(file.id)
        assert sum(map(len, pieces)) == 8_000_000 - 1_000  # sent to its end all the same
