"""Webhooks: an event as a signed message, and the keeper's thread that sends what is due.

A message is sent at least once: a sender that is killed between the answer and the note of it sends it again,
under the same `webhook-id`.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import orjson
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from app.db.deliveries import Delivery, due_deliveries, record_attempt, take_deliveries
from app.db.session import Database
from app.lifecycle import TERMINAL
from app.outage import reason
from app.outbound import BadUrl, Undeliverable, post

EVENT_TYPES = tuple(sorted(f"batch.{status}" for status in TERMINAL))

MAX_AT_ONCE = 8
HOLD_SECONDS = 120  # far longer than an attempt takes
_IDLE_SECONDS = 0.5
_OUTAGE_SECONDS = 5.0

log = logging.getLogger(__name__)


class SenderFailed(Exception):
    """The thread ended by an error that nobody foresaw: nothing is sent any more."""


def event_body(*, event_id: str, event_type: str, created_at: int, batch_id: str) -> bytes:
    """What an endpoint receives: the same bytes at every attempt."""
    return orjson.dumps(
        {
            "id": event_id,
            "object": "event",
            "created_at": created_at,
            "type": event_type,
            "data": {"id": batch_id},
        }
    )


def signed_headers(body: bytes, *, event_id: str, secrets: Sequence[str], moment: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks, with a signature for each secret. `moment`: of the attempt, UTC."""
    signatures = [Webhook(secret).sign(event_id, moment, body.decode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": "BatchLLM",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def send_event(
    url: str,
    secrets: Sequence[str],
    *,
    event_id: str,
    event_type: str,
    created_at: int,
    batch_id: str,
    allow_private: bool,
) -> int:
    """Send one message; the status code of the answer. Raises BadUrl and Undeliverable."""
    body = event_body(event_id=event_id, event_type=event_type, created_at=created_at, batch_id=batch_id)
    headers = signed_headers(body, event_id=event_id, secrets=secrets, moment=datetime.now(UTC))
    return post(url, body, headers, allow_private=allow_private)


class Sender:
    """Sends what is due from a thread of its own, until `close`. An endpoint gets one message at a time."""

    def __init__(self, database: Database, *, allow_private: bool) -> None:
        self._database = database
        self._allow_private = allow_private
        self._busy: set[str] = set()  # endpoints
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises SenderFailed if the thread has ended by an error."""
        if self._error is not None:
            raise SenderFailed(str(self._error)) from self._error

    def close(self) -> None:
        """Let attempts that are under way end, and begin no other."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="webhook") as pool:
                while not self._stop.is_set():
                    self._wake.clear()
                    try:
                        deliveries = self._take()
                    except SQLAlchemyError as error:
                        log.warning("Webhooks have to wait: %s", reason(error))
                        self._stop.wait(_OUTAGE_SECONDS)
                        continue
                    for delivery in deliveries:
                        pool.submit(self._deliver, delivery)
                    self._wake.wait(_IDLE_SECONDS)
        except BaseException as error:  # told to the keeper, which ends with it
            self._error = error
            log.exception("The sender of webhooks failed.")

    def _take(self) -> list[Delivery]:
        busy = list(self._busy)
        with self._database.read() as session:
            ids = due_deliveries(session, busy=busy, limit=MAX_AT_ONCE - len(busy))
        if not ids:
            return []
        with self._database.begin() as session:
            taken = take_deliveries(session, ids, HOLD_SECONDS)
        self._busy.update(delivery.endpoint_id for delivery in taken)
        return taken

    def _deliver(self, delivery: Delivery) -> None:
        try:
            self._attempt(delivery)
        except SQLAlchemyError as error:
            log.warning(
                "An attempt at %s is not noted: it will be sent again (%s)", delivery.id, reason(error)
            )
        except BaseException as error:
            self._error = error
            log.exception("The sender of webhooks failed.")
        finally:
            self._busy.discard(delivery.endpoint_id)
            self._wake.set()

    def _attempt(self, delivery: Delivery) -> None:
        try:
            status_code = send_event(
                delivery.url,
                delivery.secrets,
                event_id=delivery.event_id,
                event_type=delivery.event_type,
                created_at=delivery.created_at,
                batch_id=delivery.batch_id,
                allow_private=self._allow_private,
            )
        except (BadUrl, Undeliverable) as error:
            arrived, answer = False, str(error)
        else:
            arrived, answer = 200 <= status_code < 300, str(status_code)
        if not arrived:
            log.warning(
                "%s of %s did not reach %s at attempt %d: %s",
                delivery.event_type,
                delivery.batch_id,
                delivery.endpoint_id,
                delivery.num_attempts,
                answer,
            )
        with self._database.begin() as session:
            record_attempt(session, delivery, answer, arrived=arrived)
