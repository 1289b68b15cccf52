"""Webhooks: written with the end of a batch, sent by the keeper, accepted by the SDK."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest
from openai.types.webhooks import UnwrapWebhookEvent
from sqlalchemy import select, update

from app import webhooks as webhooks_module
from app.db import deliveries as deliveries_module
from app.db.batches import transition
from app.db.deliveries import RETRY_SECONDS, due_deliveries, record_attempt, take_deliveries
from app.db.models import WebhookDelivery, WebhookEndpoint
from app.db.session import Database
from app.db.webhooks import create_endpoint, rotate_secret
from app.keeper import Keeper
from app.lifecycle import TERMINAL, BatchStatus
from app.settings import Settings
from app.storage import Storage
from app.webhooks import EVENT_TYPES, Sender, SenderFailed, event_body, signed_headers
from tests.app.db.jobs import add_batch, add_file, set_columns
from tests.app.steps import answer, cancel, claim_one, finish, request, submit, submit_good
from tests.receiver import Received, Receiver

_S = BatchStatus
SDK = openai.OpenAI(api_key="unused")
PATIENCE_SECONDS = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.02)


def register(database: Database, url: str, event_types: Sequence[str] = EVENT_TYPES) -> WebhookEndpoint:
    with database.begin() as session:
        return create_endpoint(session, name="hook", url=url, event_types=event_types)


def end_a_batch(database: Database, status: BatchStatus = _S.FAILED) -> str:
    """Id of a batch that ended straight away."""
    with database.begin() as session:
        batch_id = add_batch(session, add_file(session).id).id
        if status is _S.CANCELLED:
            assert transition(session, batch_id, _S.VALIDATING, _S.CANCELLING)
            assert transition(session, batch_id, _S.CANCELLING, status)
        else:
            assert transition(session, batch_id, _S.VALIDATING, status)
    return batch_id


def deliveries(database: Database) -> Sequence[WebhookDelivery]:
    with database.read() as session:
        return session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)).all()


def endpoint_row(database: Database, endpoint_id: str) -> WebhookEndpoint:
    with database.read() as session:
        return session.get_one(WebhookEndpoint, endpoint_id)


def make_due(database: Database) -> None:
    with database.begin() as session:
        waiting = update(WebhookDelivery).where(WebhookDelivery.next_attempt_at.is_not(None))
        session.execute(waiting.values(next_attempt_at=1))


@contextmanager
def sending(database: Database, *, allow_private: bool = True) -> Iterator[Sender]:
    sender = Sender(database, allow_private=allow_private)
    try:
        yield sender
    finally:
        sender.close()


def unwrap(received: Received, secret: str) -> UnwrapWebhookEvent:
    return SDK.webhooks.unwrap(received.body, dict(received.headers), secret=secret)


def test_the_signature_of_the_contract() -> None:
    body = event_body(
        event_id="evt_0001", event_type="batch.completed", created_at=1767225600, batch_id="batch_0001"
    )
    headers = signed_headers(
        body,
        event_id="evt_0001",
        secrets=["whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="],
        moment=datetime.fromtimestamp(1767225600, UTC),
    )
    assert headers["webhook-id"] == "evt_0001"
    assert headers["webhook-timestamp"] == "1767225600"
    assert headers["webhook-signature"] == "v1,eJhvbOVzHMA5xrzZtJ/IQIe7uY5G1Qp1bTK9blF6oSs="


def test_every_end_is_told_and_the_sdk_accepts_it(
    database: Database, storage: Storage, settings: Settings, tmp_path: Path
) -> None:
    """A batch of each kind, through the keeper as it runs."""
    settings = settings.model_copy(update={"webhook_private_targets": True})
    completed = submit_good(database, storage, 1)
    keeper = Keeper(database, storage, settings)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": True})
    failed = submit(database, storage, [request("r1", method="GET")])
    cancelled, expired = submit_good(database, storage, 1), submit_good(database, storage, 1)
    with Receiver(tmp_path / "receiver", []) as receiver:
        endpoint = register(database, receiver.url)
        finish(database, claim)
        cancel(database, cancelled)
        set_columns(database, expired, expires_at=1_000)
        stop = threading.Event()
        thread = threading.Thread(target=keeper.run, args=[stop])
        thread.start()
        wait_until(lambda: len(receiver.received) == 4)
        wait_until(lambda: all(row.delivered_at for row in deliveries(database)))
        stop.set()
        thread.join()
        events = [unwrap(received, endpoint.secret) for received in receiver.received]
        headers = [received.headers for received in receiver.received]
    assert {(event.type, event.data.id) for event in events} == {  # type: ignore[union-attr]
        ("batch.completed", completed),
        ("batch.failed", failed),
        ("batch.cancelled", cancelled),
        ("batch.expired", expired),
    }
    assert [event.id for event in events] == [each["webhook-id"] for each in headers]
    assert [type(event).__name__ for event in events if event.type == "batch.expired"] == [
        "BatchExpiredWebhookEvent"
    ]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        SDK.webhooks.unwrap("{}", dict(headers[0]), secret=endpoint.secret)
    assert {row.last_answer for row in deliveries(database)} == {"200"}


@pytest.mark.parametrize("status", sorted(TERMINAL - {_S.COMPLETED}))
def test_only_what_was_asked_for_is_told(database: Database, status: BatchStatus) -> None:
    one = register(database, "http://127.0.0.1:9", [f"batch.{status}"])
    two = register(database, "http://127.0.0.1:9")
    register(database, "http://127.0.0.1:9", [kind for kind in EVENT_TYPES if kind != f"batch.{status}"])
    batch_id = end_a_batch(database, status)
    rows = deliveries(database)
    assert {(row.endpoint_id, row.event_type, row.batch_id) for row in rows} == {
        (endpoint.id, f"batch.{status}", batch_id) for endpoint in (one, two)
    }
    assert len({row.event_id for row in rows}) == 1


def test_another_tenants_endpoints_hear_nothing(database: Database) -> None:
    with database.of("alice").begin() as session:
        create_endpoint(session, name="a", url="http://127.0.0.1:9", event_types=EVENT_TYPES)
    end_a_batch(database)
    assert not deliveries(database)


def test_an_end_that_is_rolled_back_is_not_told(database: Database) -> None:
    register(database, "http://127.0.0.1:9")

    def fail() -> None:
        with database.begin() as session:
            batch_id = add_batch(session, add_file(session).id).id
            assert transition(session, batch_id, _S.VALIDATING, _S.FAILED)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not deliveries(database)


def test_what_fails_is_tried_again_under_the_same_id(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "RETRY_SECONDS", (0, 0, 0, 0, 0, 0))
    with Receiver(tmp_path / "receiver", [500, 302, 404]) as receiver:
        endpoint = register(database, receiver.url)
        end_a_batch(database)
        with sending(database):
            wait_until(lambda: deliveries(database)[0].delivered_at)
        received = receiver.received
    assert len(received) == 4
    assert len({each.headers["webhook-id"] for each in received}) == 1
    assert len({each.body for each in received}) == 1
    assert {each.path for each in received} == {"/hook"}  # the redirect was not followed
    assert unwrap(received[-1], endpoint.secret).type == "batch.failed"


def test_a_retry_survives_the_sender(database: Database, tmp_path: Path) -> None:
    """Nobody listens at first; then the sender is gone; another one delivers when it is time."""
    with Receiver(tmp_path / "receiver", []) as receiver:
        endpoint = register(database, "http://127.0.0.1:9/")
        end_a_batch(database)
        with sending(database):
            wait_until(lambda: deliveries(database)[0].last_answer)
        (row,) = deliveries(database)
        assert row.delivered_at is None
        assert row.next_attempt_at is not None
        assert row.next_attempt_at >= row.created_at + RETRY_SECONDS[0]
        with database.begin() as session:
            session.get_one(WebhookEndpoint, endpoint.id).url = receiver.url
        make_due(database)
        with sending(database):
            wait_until(lambda: deliveries(database)[0].delivered_at)
        assert [each.headers["webhook-id"] for each in receiver.received] == [row.event_id]


def test_a_killed_attempt_is_due_again_and_its_end_is_not_noted(database: Database) -> None:
    register(database, "http://127.0.0.1:9/")
    end_a_batch(database)

    def take() -> list[deliveries_module.Delivery]:
        with database.begin() as session:
            return take_deliveries(session, due_deliveries(session, busy=[], limit=9), hold_seconds=100)

    (first,) = take()
    assert take() == []  # held
    make_due(database)
    (second,) = take()
    assert (first.num_attempts, second.num_attempts) == (1, 2)
    with database.begin() as session:
        record_attempt(session, first, "200", arrived=True)
    assert deliveries(database)[0].delivered_at is None
    with database.begin() as session:
        record_attempt(session, second, "200", arrived=True)
    assert deliveries(database)[0].delivered_at is not None


def test_private_targets_are_blocked_unless_allowed(database: Database, tmp_path: Path) -> None:
    with Receiver(tmp_path / "receiver", []) as receiver:
        register(database, receiver.url)
        end_a_batch(database)
        with sending(database, allow_private=False):
            wait_until(lambda: deliveries(database)[0].last_answer)
        assert receiver.received == []
    assert "no public address" in str(deliveries(database)[0].last_answer)


def fail(database: Database, times: int) -> None:
    for _ in range(times):
        make_due(database)
        with database.begin() as session:
            for delivery in take_deliveries(session, due_deliveries(session, busy=[], limit=9), 100):
                record_attempt(session, delivery, "500", arrived=False)


def test_the_steps_of_the_back_off(database: Database) -> None:
    register(database, "http://127.0.0.1:9/")
    end_a_batch(database)
    for seconds in RETRY_SECONDS:
        fail(database, 1)
        (row,) = deliveries(database)
        with database.read() as session:
            moment = deliveries_module.now(session)
        assert row.next_attempt_at is not None
        assert moment + seconds - 60 <= row.next_attempt_at <= moment + seconds
    fail(database, 1)
    (row,) = deliveries(database)
    assert (row.next_attempt_at, row.delivered_at, row.num_attempts) == (None, None, 7)


def test_an_endpoint_that_is_gone_is_disabled(database: Database) -> None:
    endpoint = register(database, "http://127.0.0.1:9/")
    for _ in range(3):
        assert endpoint_row(database, endpoint.id).disabled_at is None
        end_a_batch(database)
        fail(database, len(RETRY_SECONDS) + 1)
    assert endpoint_row(database, endpoint.id).disabled_at is not None
    end_a_batch(database)
    assert len(deliveries(database)) == 3


def test_one_that_arrives_starts_the_count_anew(database: Database) -> None:
    endpoint = register(database, "http://127.0.0.1:9/")
    for _ in range(2):
        end_a_batch(database)
        fail(database, len(RETRY_SECONDS) + 1)
    end_a_batch(database)
    with database.begin() as session:
        (delivery,) = take_deliveries(session, due_deliveries(session, busy=[], limit=9), 100)
        record_attempt(session, delivery, "204", arrived=True)
    end_a_batch(database)
    fail(database, len(RETRY_SECONDS) + 1)
    assert endpoint_row(database, endpoint.id).disabled_at is None


def test_a_slow_endpoint_holds_up_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gets one message at a time."""
    release, at_once = threading.Event(), []
    real = webhooks_module.post

    def post(url: str, *arguments: object, **options: object) -> int:
        if "slow" in url:
            at_once.append(url)
            assert release.wait(PATIENCE_SECONDS)
            return 200
        return real(url, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(webhooks_module, "post", post)
    with Receiver(tmp_path / "receiver", []) as receiver:
        register(database, "http://slow.example/")
        for _ in range(3):
            end_a_batch(database)
        register(database, receiver.url)
        ids = [end_a_batch(database) for _ in range(5)]
        with sending(database):
            wait_until(lambda: len(receiver.received) == 5)
            assert len(at_once) == 1
            release.set()
            wait_until(lambda: all(row.delivered_at for row in deliveries(database)))
        assert [each.body.split('"')[-2] for each in receiver.received] == ids  # in order


def test_a_rotated_secret_signs_beside_the_new_one(database: Database, tmp_path: Path) -> None:
    with Receiver(tmp_path / "receiver", []) as receiver:
        endpoint = register(database, receiver.url)
        old = endpoint.secret
        with database.begin() as session:
            row = session.get_one(WebhookEndpoint, endpoint.id)
            rotate_secret(session, row, keep_old=True)
            new = row.secret
        end_a_batch(database)
        with sending(database):
            wait_until(lambda: receiver.received)
        assert unwrap(receiver.received[0], old) == unwrap(receiver.received[0], new)
        with database.begin() as session:  # a day later
            session.get_one(WebhookEndpoint, endpoint.id).old_secret_expires_at = 1_000
        end_a_batch(database)
        with sending(database):
            wait_until(lambda: len(receiver.received) == 2)
        unwrap(receiver.received[1], new)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(receiver.received[1], old)


def test_two_senders_deliver_each_event_once(database: Database, tmp_path: Path) -> None:
    with Receiver(tmp_path / "receiver", []) as receiver:
        register(database, receiver.url)
        ids = [end_a_batch(database) for _ in range(10)]
        with sending(database), sending(database):
            wait_until(lambda: all(row.delivered_at for row in deliveries(database)))
        assert sorted(each.body.split('"')[-2] for each in receiver.received) == sorted(ids)


def test_an_unforeseen_error_ends_the_keeper(
    database: Database, storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(webhooks_module, "due_deliveries", break_down)
    with pytest.raises(SenderFailed, match="a fault of our own"):
        Keeper(database, storage, settings).run(threading.Event())
