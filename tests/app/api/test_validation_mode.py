"""`validation` and `strict_create` through the SDK, with a real keeper behind."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from app.db.session import Database
from app.keeper import Keeper
from app.storage import Storage
from tests.app.api.conftest import Server, running

ENDPOINT = "/v1/completions"
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": ENDPOINT,
    "body": {"model": "org/tiny-model", "prompt": "x"},
}


def create(server: Server, file_id: str, **extra: Any) -> openai.types.Batch:
    return server.client.batches.create(
        input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", extra_body=extra
    )


def test_skip_through_the_sdk(server: Server) -> None:
    content = json.dumps(LINE) + "\n" + json.dumps(LINE | {"url": "/v1/other"}) + "\n{broken\n"
    file = server.client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    skipping = create(server, file.id, validation="skip")
    strict = create(server, file.id)
    assert skipping.model_dump()["validation"] == "skip"
    assert strict.model_dump()["validation"] == "strict"
    keeper = Keeper(server.database, server.storage, server.settings)
    while keeper.tick():
        pass
    assert server.client.batches.retrieve(strict.id).status == "failed"
    batch = server.client.batches.retrieve(skipping.id)
    assert (batch.status, batch.errors) == ("in_progress", None)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.failed) == (3, 2)
    server.client.batches.cancel(batch.id)
    while keeper.tick():
        pass
    batch = server.client.batches.retrieve(skipping.id)
    lines = [json.loads(line) for line in server.client.files.content(batch.error_file_id or "").iter_lines()]
    assert [line["custom_id"] for line in lines] == ["a", f"{batch.id}_line_2", f"{batch.id}_line_3"]
    assert lines[0]["error"]["code"] == "batch_cancelled"
    assert [line["response"]["body"]["error"]["line"] for line in lines[1:]] == [2, 3]


@pytest.mark.parametrize("value", ["none", "", None, 1])
def test_other_values_are_refused(server: Server, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(server, "file-1", validation=value)
    assert caught.value.param == "validation"


def test_strict_create(database: Database, storage: Storage, tmp_path: Path) -> None:
    with running(database, storage, tmp_path / "data", strict_create=True) as server:
        with pytest.raises(openai.NotFoundError) as caught:
            create(server, "file-1")
        assert caught.value.param == "input_file_id"
        assert server.client.batches.list().data == []
        file = server.client.files.create(file=json.dumps(LINE).encode(), purpose="batch")
        assert create(server, file.id).status == "validating"
