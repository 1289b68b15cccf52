"""/v1/webhook_endpoints: where a tenant hears of the end of its batches. The keeper sends, but for tests."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session

from app.api.bodies import WebhookCreate, WebhookRotate, WebhookTest, WebhookUpdate
from app.api.deps import Service, ServiceDep, json_body, known_cursor, may_be_id
from app.api.description import json_schema
from app.api.errors import ApiError, invalid_value, not_found
from app.api.schemas import (
    WebhookEndpointDeleted,
    WebhookEndpointList,
    WebhookEndpointObject,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from app.db import webhooks
from app.db.ids import new_id
from app.db.models import WebhookEndpoint
from app.db.session import now
from app.outbound import BadUrl, Undeliverable, check_url
from app.webhooks import EVENT_TYPES, send_event

router = APIRouter(prefix="/v1")

_TEST_BATCH_ID = "batch_" + 32 * "0"  # no batch has this id


@router.get("/webhook_event_types")
def list_webhook_event_types() -> WebhookEventTypeList:
    """The events that can be told."""
    return WebhookEventTypeList(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints", openapi_extra=json_schema(WebhookCreate))
def create_webhook_endpoint(
    service: ServiceDep, body: Annotated[WebhookCreate, Depends(json_body(WebhookCreate))]
) -> WebhookEndpointWithSecret:
    """Have the ends of batches told to a URL. The answer has the secret that signs what is sent there."""
    _check_url(service, body.url)
    event_types = list(dict.fromkeys(body.event_types))
    with service.database.begin() as session:
        try:
            row = webhooks.create_endpoint(session, name=body.name, url=body.url, event_types=event_types)
        except webhooks.TooManyEndpoints as error:
            raise ApiError(400, str(error)) from None
        return WebhookEndpointWithSecret.of(row)


@router.get("/webhook_endpoints")
def list_webhook_endpoints(
    service: ServiceDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> WebhookEndpointList:
    """Newest first. `after` is the last id of the previous page."""
    with service.database.read() as session, known_cursor(after):
        rows, has_more = webhooks.list_endpoints(session, after=after, limit=limit)
        return WebhookEndpointList.of(rows, has_more)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def retrieve_webhook_endpoint(service: ServiceDep, webhook_endpoint_id: str) -> WebhookEndpointObject:
    """What is known of an endpoint; not its secret."""
    with service.database.read() as session:
        return WebhookEndpointObject.of(_find(session, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}", openapi_extra=json_schema(WebhookUpdate))
def update_webhook_endpoint(
    service: ServiceDep,
    webhook_endpoint_id: str,
    body: Annotated[WebhookUpdate, Depends(json_body(WebhookUpdate))],
) -> WebhookEndpointObject:
    """Change what is given. An endpoint that was disabled is in use again, and gets what waited for it."""
    if body.url is not None:
        _check_url(service, body.url)
    changes = body.model_dump(exclude_none=True)
    with service.database.begin() as session:
        row = _find(session, webhook_endpoint_id)
        webhooks.update_endpoint(session, row, **changes)
        return WebhookEndpointObject.of(row)


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete_webhook_endpoint(service: ServiceDep, webhook_endpoint_id: str) -> WebhookEndpointDeleted:
    """Nothing is sent there any more, not even what has been tried before."""
    with service.database.begin() as session:
        session.delete(_find(session, webhook_endpoint_id))
    return WebhookEndpointDeleted(id=webhook_endpoint_id)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", openapi_extra=json_schema(WebhookRotate)
)
def rotate_webhook_secret(
    service: ServiceDep,
    webhook_endpoint_id: str,
    body: Annotated[WebhookRotate, Depends(json_body(WebhookRotate))],
) -> WebhookEndpointWithSecret:
    """Sign with a new secret; on request the old one signs too, for a day."""
    with service.database.begin() as session:
        row = _find(session, webhook_endpoint_id)
        webhooks.rotate_secret(session, row, keep_old=body.keep_old_secret_active_for_24_hours)
        return WebhookEndpointWithSecret.of(row)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test", openapi_extra=json_schema(WebhookTest))
def test_webhook_endpoint(
    service: ServiceDep,
    webhook_endpoint_id: str,
    body: Annotated[WebhookTest, Depends(json_body(WebhookTest))],
) -> WebhookEndpointTestResult:
    """Send an event of a batch that does not exist, once and now; the status that came back."""
    with service.database.read() as session:
        row = _find(session, webhook_endpoint_id)
        moment = now(session)
        secrets = webhooks.secrets_at(row, moment)
    try:
        status_code = send_event(
            row.url,
            secrets,
            event_id=new_id("evt_"),
            event_type=body.event_type,
            created_at=moment,
            batch_id=_TEST_BATCH_ID,
            allow_private=service.settings.webhook_private_targets,
        )
    except (BadUrl, Undeliverable) as error:
        raise ApiError(400, f"The endpoint did not answer: {error}.", code="webhook_undeliverable") from None
    return WebhookEndpointTestResult(
        webhook_endpoint_id=row.id, event_type=body.event_type, status_code=status_code
    )


def _check_url(service: Service, url: str) -> None:
    try:
        check_url(url, allow_private=service.settings.webhook_private_targets)
    except BadUrl as error:
        raise invalid_value("url", f"Invalid 'url': {error}") from None


def _find(session: Session, endpoint_id: str) -> WebhookEndpoint:
    row = webhooks.get_endpoint(session, endpoint_id) if may_be_id(endpoint_id) else None
    if row is None:
        raise not_found(f"No such webhook endpoint: {endpoint_id}", param="id")
    return row
