"""Webhook endpoints: who hears of a tenant's batches, where, and with which secret."""

import base64
import secrets
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.models import WebhookEndpoint
from app.db.pages import page_of
from app.db.session import now
from app.settings import DAY_SECONDS

MAX_ENDPOINTS = 20  # of a tenant: every event is sent to each
OLD_SECRET_SECONDS = DAY_SECONDS

_SECRET_BYTES = 32


class TooManyEndpoints(Exception):
    """The tenant has as many as it may have."""


def create_endpoint(session: Session, *, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
    """A new endpoint with a new secret. Raises TooManyEndpoints."""
    if session.scalars(select(func.count()).select_from(WebhookEndpoint)).one() >= MAX_ENDPOINTS:
        raise TooManyEndpoints(f"There can be at most {MAX_ENDPOINTS} webhook endpoints: delete one first.")
    created_at = now(session)
    endpoint = WebhookEndpoint(
        id=new_id("we_"),
        name=name,
        url=url,
        event_types=list(event_types),
        secret=_new_secret(),
        created_at=created_at,
        updated_at=created_at,
        num_given_up=0,
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    """The endpoint, or None."""
    return session.get(WebhookEndpoint, endpoint_id)


def list_endpoints(
    session: Session, *, after: str | None, limit: int
) -> tuple[Sequence[WebhookEndpoint], bool]:
    """Up to `limit` endpoints after the endpoint `after`, newest first, and whether there are more.

    Raises UnknownCursor if there is no endpoint `after`.
    """
    return page_of(session, select(WebhookEndpoint), WebhookEndpoint, after=after, limit=limit, order="desc")


def update_endpoint(session: Session, endpoint: WebhookEndpoint, **columns: object) -> None:
    """Change `columns`; one that was disabled is in use again, and what waited for it is sent."""
    changes = {name: value for name, value in columns.items() if getattr(endpoint, name) != value}
    if not changes and endpoint.disabled_at is None:
        return
    for name, value in changes.items():
        setattr(endpoint, name, value)
    endpoint.updated_at = now(session)
    endpoint.disabled_at = None
    endpoint.num_given_up = 0


def rotate_secret(session: Session, endpoint: WebhookEndpoint, *, keep_old: bool) -> None:
    """Sign with a new secret, and for a day with the old one too if `keep_old`."""
    moment = now(session)
    endpoint.old_secret = endpoint.secret if keep_old else None
    endpoint.old_secret_expires_at = moment + OLD_SECRET_SECONDS if keep_old else None
    endpoint.secret = _new_secret()
    endpoint.updated_at = moment


def secrets_at(endpoint: WebhookEndpoint, moment: int) -> list[str]:
    """What signs at `moment`, in unix seconds; the newest first."""
    old_is_good = endpoint.old_secret is not None and (endpoint.old_secret_expires_at or 0) > moment
    return [endpoint.secret, *([endpoint.old_secret] if old_is_good and endpoint.old_secret else [])]


def _new_secret() -> str:
    """In the form of Standard Webhooks."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
