"""Our objects have exactly the keys of the recorded ones, nulls included."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch, FileDeleted, FileObject, Model, Upload
from openai.types.uploads import UploadPart

from app.lifecycle import BatchStatus
from tests.app.api.conftest import Server
from tests.app.api.test_batches import create, move
from tests.app.api.test_files import upload
from tests.app.api.test_uploads import begin

EXTENSIONS = ("validation", "priority", "paused_at", "progress")  # of the batch object
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())


def keys(value: object) -> object:
    """The shape of a JSON value: its keys, and their values' shapes where those are objects."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items() if key != "metadata"} | {
            key: None for key in value if key == "metadata"
        }
    if isinstance(value, list):
        return [keys(inner) for inner in value[:1]]
    return None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("file", FileObject),
        ("file_deleted", FileDeleted),
        ("upload", Upload),
        ("upload_part", UploadPart),
        ("batch", Batch),
        ("batch_failed", Batch),
        ("model", Model),
    ],
)
def test_the_recorded_objects_are_the_sdk_s(name: str, kind: Any) -> None:
    kind.model_validate(GOLDEN[name], strict=True)


def test_ours_have_the_same_keys(server: Server) -> None:
    file_id = upload(server)
    assert keys(server.http("GET", "/v1/files/" + file_id).json()) == keys(GOLDEN["file"])
    assert keys(server.http("GET", "/v1/files?after=" + file_id).json()) == keys(GOLDEN["file_list"])
    assert keys(server.http("DELETE", "/v1/files/" + file_id).json()) == keys(GOLDEN["file_deleted"])
    model = {**GOLDEN["model"], "alias_of": None}
    assert keys(server.http("GET", "/v1/models/org/tiny-model").json()) == keys(model)
    uploading = begin(server, 2).id
    part_path = f"/v1/uploads/{uploading}/parts"
    part = server.http("POST", part_path, files={"data": b"{}"}).json()
    assert keys(part) == keys(GOLDEN["upload_part"])
    uploaded = server.http(
        "POST", f"/v1/uploads/{uploading}/complete", json={"part_ids": [part["id"]]}
    ).json()
    assert keys(uploaded) == keys(GOLDEN["upload"] | {"file": GOLDEN["file"]})
    failed, done = create(server).id, create(server, metadata={"k": "v"}).id
    errors = GOLDEN["batch_failed"]["errors"]["data"]
    move(server, failed, BatchStatus.FAILED, errors=errors)
    move(server, done, BatchStatus.COMPLETED, total=100, completed=95, failed=5, model="m")
    ours = dict.fromkeys(EXTENSIONS)
    assert keys(server.http("GET", "/v1/batches/" + failed).json() | ours) == keys(
        GOLDEN["batch_failed"] | ours
    )
    assert keys(server.http("GET", "/v1/batches/" + done).json() | ours) == keys(GOLDEN["batch"] | ours)
