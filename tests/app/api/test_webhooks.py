"""/v1/webhook_endpoints through the SDK."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from app.db.models import WebhookEndpoint
from app.db.session import Database
from app.storage import Storage
from tests.app.api.conftest import Server, running
from tests.receiver import Receiver

URL = "https://hooks.example/batches"
EVENT_TYPES = ["batch.cancelled", "batch.completed", "batch.expired", "batch.failed"]


@pytest.fixture
def private_server(database: Database, storage: Storage, tmp_path: Path) -> Iterator[Server]:
    """A server that may send to this machine."""
    with running(database, storage, tmp_path / "data", webhook_private_targets=True) as server:
        yield server


def create(server: Server, url: str = URL, **changes: Any) -> Any:
    given = {"name": "mine", "url": url, "event_types": ["batch.completed", "batch.failed"]} | changes
    return server.client.webhooks.create(**given)


def test_the_life_of_an_endpoint(server: Server) -> None:
    client = server.client
    assert client.webhooks.event_types.list().data == EVENT_TYPES
    made = create(server)
    assert (made.object, made.name, made.url) == ("webhook_endpoint", "mine", URL)
    assert made.event_types == ["batch.completed", "batch.failed"]
    assert made.signing_secret.startswith("whsec_")
    got = client.webhooks.retrieve(made.id)
    assert made.signing_secret not in got.to_json()
    assert got.signing_secret_hint == f"whsec_...{made.signing_secret[-4:]}"
    changed = client.webhooks.update(made.id, name="ours", event_types=["batch.expired"])
    assert (changed.name, changed.url, changed.event_types) == ("ours", URL, ["batch.expired"])
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    assert client.webhooks.rotate_secret(made.id).signing_secret != rotated.signing_secret
    deleted = client.webhooks.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "webhook_endpoint.deleted", True)
    for call in (client.webhooks.retrieve, client.webhooks.delete, client.webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError, match=made.id):
            call(made.id)


def test_pages_are_newest_first(server: Server) -> None:
    ids = [create(server).id for _ in range(5)]
    assert [endpoint.id for endpoint in server.client.webhooks.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.BadRequestError, match="after"):
        server.client.webhooks.list(after="we_none")


def test_an_update_enables_what_was_disabled(server: Server) -> None:
    made = create(server)
    with server.database.begin() as session:
        session.get_one(WebhookEndpoint, made.id).disabled_at = 7
    assert server.client.webhooks.retrieve(made.id).model_extra == {"disabled_at": 7}
    assert server.client.webhooks.update(made.id).model_extra == {"disabled_at": None}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"url": "http://127.0.0.1/"}, "url"),
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"url": "ftp://hooks.example/"}, "url"),
        ({"url": "x" * 3_000}, "url"),
        ({"name": ""}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["response.completed"]}, "event_types[0]"),
        ({"event_types": "batch.failed"}, "event_types"),
    ],
)
def test_what_is_refused(shared_server: Server, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(shared_server, **changes)
    assert caught.value.param == param


def test_there_is_an_end_to_endpoints(server: Server) -> None:
    for _ in range(20):
        create(server)
    with pytest.raises(openai.BadRequestError, match="at most 20"):
        create(server)


def test_a_test_is_sent_at_once(private_server: Server, tmp_path: Path) -> None:
    with Receiver(tmp_path / "receiver", [200, 500]) as receiver:
        made = create(private_server, receiver.url)
        first, second = (
            private_server.client.webhooks.test(made.id, event_type="batch.expired") for _ in range(2)
        )
        event = private_server.client.webhooks.unwrap(
            receiver.received[0].body, dict(receiver.received[0].headers), secret=made.signing_secret
        )
    assert (first.object, first.webhook_endpoint_id, first.event_type) == (
        "webhook_endpoint.test",
        made.id,
        "batch.expired",
    )
    assert (first.status_code, second.status_code) == (200, 500)
    assert event.type == "batch.expired"


def test_a_test_without_an_answer_is_an_error(private_server: Server) -> None:
    made = create(private_server, "http://127.0.0.1:9/")
    with pytest.raises(openai.BadRequestError) as caught:
        private_server.client.webhooks.test(made.id, event_type="batch.failed")
    assert caught.value.code == "webhook_undeliverable"


def test_a_test_goes_to_no_private_target(server: Server) -> None:
    made = create(server, "http://localhost:9/")
    with pytest.raises(openai.BadRequestError, match="no public address"):
        server.client.webhooks.test(made.id, event_type="batch.failed")
