"""Points 12, 13 and 15 of the wire contract, and the core flow by two major versions of the SDK."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from filelock import FileLock
from platformdirs import user_cache_path
from sqlalchemy import update

from app.db.models import WebhookDelivery
from tests.conformance import core_flow
from tests.conformance.test_files import refusal
from tests.live import MODEL, PATIENCE_SECONDS, Live, line, submit, wait_for
from tests.receiver import Receiver

JSON = {"content-type": "application/json"}
KINDS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
}
WRONG_REQUESTS: list[tuple[int, str, str, dict[str, Any]]] = [
    (400, "POST", "/v1/batches", {"content": b"{not json", "headers": JSON}),
    (400, "POST", "/v1/batches", {"json": {}}),
    (400, "POST", "/v1/batches", {"json": []}),
    (400, "POST", "/v1/uploads", {"json": {"bytes": "9"}}),
    (400, "GET", "/v1/files?limit=0", {}),
    (400, "GET", "/v1/batches?limit=many", {}),
    (401, "GET", "/v1/files", {"headers": {"authorization": "Bearer wrong"}}),
    (401, "POST", "/v1/batches", {"headers": {"authorization": ""}}),
    (404, "GET", "/v1/nothing", {}),
    (404, "GET", "/v1/files/file-none", {}),
    (404, "GET", "/v1/batches/batch_none", {}),
    (404, "GET", "/v1/models/none", {}),
    (405, "PUT", "/v1/files", {}),
    (405, "DELETE", "/v1/batches", {}),
    (405, "PATCH", "/v1/batches/batch_none/cancel", {}),
    (413, "POST", "/v1/batches", {"content": b" " * (2 << 20), "headers": JSON}),
    (415, "POST", "/v1/batches", {"content": b"{}", "headers": {"content-type": "text/plain"}}),
    (415, "POST", "/v1/files", {"json": {}}),
    (415, "POST", "/v1/uploads/upload_none/parts", {"json": {}}),
]


def test_12_the_envelope(live: Live, client: openai.OpenAI) -> None:
    for status, method, path, given in WRONG_REQUESTS:
        answer = live.http(client, method, path, **given)
        assert answer.status_code == status, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"].startswith("req_")
        assert set(answer.json()) == {"error"}
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))


def test_12_the_sdk_s_exceptions(client: openai.OpenAI) -> None:
    done = wait_for(client, submit(client, [line("a")]))
    calls: dict[int, Any] = {
        400: lambda: client.files.list(limit=0),
        401: lambda: client.with_options(api_key="wrong").files.list(),
        404: lambda: client.files.retrieve("file-none"),
        409: lambda: client.batches.cancel(done.id),
    }
    for status, call in calls.items():
        with pytest.raises(KINDS[status]) as caught:
            call()
        assert caught.value.status_code == status
        assert caught.value.request_id


def test_13_tenants(live: Live) -> None:
    alice, bob = live.client(), live.client()
    batch = wait_for(alice, submit(alice, [line("a")]))
    upload = alice.uploads.create(
        filename="in.jsonl", purpose="batch", bytes=9, mime_type="application/jsonl"
    )
    hook = alice.webhooks.create(name="a", url="https://example.com/", event_types=["batch.failed"])
    output_id = batch.output_file_id or ""
    for call, object_id in (
        (bob.files.retrieve, batch.input_file_id),
        (bob.files.content, output_id),
        (bob.files.delete, output_id),
        (bob.batches.retrieve, batch.id),
        (bob.batches.cancel, batch.id),
        (bob.uploads.cancel, upload.id),
        (bob.webhooks.retrieve, hook.id),
        (bob.webhooks.delete, hook.id),
    ):
        refusal(404, call, object_id)
    refusal(404, bob.uploads.parts.create, upload.id, data=b"{}")
    refusal(404, bob.uploads.complete, upload.id, part_ids=[])
    for listed in (bob.files.list(), bob.batches.list(), bob.webhooks.list()):
        assert listed.data == []
    stolen = bob.batches.create(
        input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    failed = wait_for(bob, stolen, "failed")
    assert failed.errors is not None
    assert "Cannot find file" in str((failed.errors.data or [])[0].message)
    assert {file.id for file in alice.files.list()} == {batch.input_file_id, output_id}
    assert alice.batches.retrieve(batch.id) == batch


def test_15_webhooks(live: Live, client: openai.OpenAI, tmp_path: Path) -> None:
    """A receiver that fails at first; then one whose secret was changed."""
    with Receiver(tmp_path / "receiver", [500]) as receiver:
        hook = client.webhooks.create(name="a", url=receiver.url, event_types=["batch.failed"])
        batch = wait_for(client, submit(client, b"{}"), "failed")
        wait_until(lambda: len(receiver.received) == 1)
        make_due(live)
        wait_until(lambda: len(receiver.received) == 2)
        first, second = receiver.received
        event = client.webhooks.unwrap(second.body, dict(second.headers), secret=hook.signing_secret)
        assert (event.type, event.data.id) == ("batch.failed", batch.id)  # type: ignore[union-attr]
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == event.id
        rotated = client.webhooks.rotate_secret(hook.id, keep_old_secret_active_for_24_hours=True)
        wait_for(client, submit(client, b"{}"), "failed")
        wait_until(lambda: len(receiver.received) == 3)
        third = receiver.received[2]
        for secret in (hook.signing_secret, rotated.signing_secret):
            client.webhooks.unwrap(third.body, dict(third.headers), secret=secret)
        client.webhooks.rotate_secret(hook.id)
        wait_for(client, submit(client, b"{}"), "failed")
        wait_until(lambda: len(receiver.received) == 4)
        last = receiver.received[3]
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(last.body, dict(last.headers), secret=hook.signing_secret)


def make_due(live: Live) -> None:
    """The next attempt is now: five seconds are a long time."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        with live.database.begin() as session:
            failed = update(WebhookDelivery).where(
                WebhookDelivery.num_attempts > 0, WebhookDelivery.next_attempt_at.is_not(None)
            )
            if session.execute(failed.values(next_attempt_at=1)).rowcount:  # type: ignore[attr-defined]
                return
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def wait_until(condition: Any) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def check_core_flow(python: Path | str, live: Live, major: int) -> None:
    command = [str(python), core_flow.__file__, f"{live.service.url}/v1", live.key(), MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert int(seen.pop("version").partition(".")[0]) == major
    assert seen == {
        "status": "completed",
        "counts": {"total": 21, "completed": 20, "failed": 1},
        "metadata": {"job": "core"},
        "outputs": [f"r{number}" for number in range(20)],
        "errors": ["r20"],
        "files": 4,
        "batches": True,
        "models": [MODEL],
        "refusal": "Cannot cancel a batch with status 'completed'.",
    }


def test_the_core_flow_by_the_sdk_of_today(live: Live) -> None:
    check_core_flow(sys.executable, live, major=3)


@pytest.fixture(scope="session")
def python_with_openai_2() -> Path:
    """An interpreter in a virtual environment of its own, kept between runs: the versions share a name."""
    directory = user_cache_path("batchllm") / "tests" / "openai-2"
    directory.parent.mkdir(parents=True, exist_ok=True)
    python, stamp = directory / "bin" / "python", directory / "installed"
    with FileLock(f"{directory}.lock"):
        if not stamp.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "openai>=2,<3"], check=True)
            stamp.touch()
    return python


@pytest.mark.long
def test_the_core_flow_by_the_sdk_before(live: Live, python_with_openai_2: Path) -> None:
    check_core_flow(python_with_openai_2, live, major=2)
