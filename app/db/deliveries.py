"""The outbox of webhooks: events are written with the change that they tell of, and sent afterwards."""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import and_, delete, func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.models import Batch, WebhookDelivery, WebhookEndpoint
from app.db.session import now, unix_now
from app.db.webhooks import secrets_at
from app.lifecycle import BatchStatus

# From a failed attempt to the next one: seconds at first, then long enough for an outage of a day.
RETRY_SECONDS = (5, 300, 1_800, 7_200, 28_800, 86_400)
# So many deliveries in a row, each tried for a day and a half, and the endpoint counts as gone.
GIVEN_UP_TO_DISABLE = 3

_IS_DUE = and_(
    WebhookDelivery.next_attempt_at <= unix_now(),
    WebhookDelivery.endpoint_id == WebhookEndpoint.id,
    WebhookEndpoint.disabled_at.is_(None),
)


class Delivery(NamedTuple):
    """One attempt. `secrets`: all that sign it."""

    id: int
    endpoint_id: str
    url: str
    secrets: list[str]
    event_id: str
    event_type: str
    batch_id: str
    created_at: int
    num_attempts: int


def announce(session: Session, batch_id: str, status: BatchStatus) -> None:
    """Tell the batch's owner of its end, once this transaction is committed."""
    event_type = f"batch.{status}"
    owner = select(Batch.owner).where(Batch.id == batch_id).scalar_subquery()
    in_use = select(WebhookEndpoint).where(
        WebhookEndpoint.owner == owner, WebhookEndpoint.disabled_at.is_(None)
    )
    locked = in_use.with_for_update(read=True, key_share=True)  # none is deleted before its row is there
    listening = [e for e in session.scalars(locked) if event_type in e.event_types]
    if not listening:
        return
    event_id, moment = new_id("evt_"), now(session)
    for endpoint in listening:
        delivery = WebhookDelivery(
            endpoint_id=endpoint.id,
            event_id=event_id,
            event_type=event_type,
            batch_id=batch_id,
            created_at=moment,
            next_attempt_at=moment,
        )
        session.add(delivery)


def due_deliveries(session: Session, *, busy: Collection[str], limit: int) -> list[int]:
    """Ids of deliveries whose time has come: the oldest of each endpoint that is not `busy`."""
    oldest = select(func.min(WebhookDelivery.id)).where(_IS_DUE, WebhookEndpoint.id.not_in(busy))
    return list(session.scalars(oldest.group_by(WebhookDelivery.endpoint_id).limit(limit)))


def take_deliveries(session: Session, ids: Collection[int], hold_seconds: int) -> list[Delivery]:
    """Begin an attempt at each of `ids` that is still due.

    Nobody else attempts it for `hold_seconds`; afterwards, the sender having been killed, it is due again.
    """
    query = select(WebhookDelivery, WebhookEndpoint).where(WebhookDelivery.id.in_(ids), _IS_DUE)
    moment = now(session)
    taken = []
    for row, endpoint in session.execute(query.with_for_update(of=WebhookDelivery, skip_locked=True)):
        row.num_attempts += 1
        row.next_attempt_at = moment + hold_seconds
        taken.append(
            Delivery(
                id=row.id,
                endpoint_id=endpoint.id,
                url=endpoint.url,
                secrets=secrets_at(endpoint, moment),
                event_id=row.event_id,
                event_type=row.event_type,
                batch_id=row.batch_id,
                created_at=row.created_at,
                num_attempts=row.num_attempts,
            )
        )
    return taken


def record_attempt(session: Session, delivery: Delivery, answer: str, *, arrived: bool) -> None:
    """Note how the attempt ended. `answer`: a status code, or why there was none.

    Nothing is noted if the delivery is another's by now, or its endpoint is deleted.
    """
    endpoint = session.get(WebhookEndpoint, delivery.endpoint_id, with_for_update=True)
    row = session.get(WebhookDelivery, delivery.id, with_for_update=True)
    if endpoint is None or row is None or row.num_attempts != delivery.num_attempts:
        return
    moment = now(session)
    row.last_answer = answer
    row.next_attempt_at = None
    if arrived:
        row.delivered_at = moment
        endpoint.num_given_up = 0
    elif row.num_attempts <= len(RETRY_SECONDS):
        row.next_attempt_at = moment + RETRY_SECONDS[row.num_attempts - 1]
    else:
        endpoint.num_given_up += 1
        if endpoint.num_given_up >= GIVEN_UP_TO_DISABLE:
            endpoint.disabled_at = moment


def forget_deliveries(session: Session, seconds: int) -> None:
    """Delete deliveries of events of more than `seconds` ago, those to disabled endpoints among them."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at <= unix_now() - seconds))
