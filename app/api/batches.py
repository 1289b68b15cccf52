"""/v1/batches: takes jobs and tells how they stand; everything else happens in the keeper and the workers."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.orm import Session

from app.api.bodies import (
    ENDPOINTS,
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE_CHARS,
    PURPOSES,
    BatchCreate,
)
from app.api.deps import Service, ServiceDep, json_body, known_cursor, may_be_id, within_quota
from app.api.description import json_schema
from app.api.errors import ApiError, conflict, invalid_value, not_found, unsupported_value
from app.api.idempotency import IdempotencyKey, request_key, unused_key
from app.api.incoming import check_expiry_seconds
from app.api.progress import progress_of
from app.api.schemas import BatchDeleted, BatchList, BatchObject
from app.db import batches, files
from app.db.idempotency import create_once, made_before
from app.db.models import Batch
from app.housekeeping import forget_batch
from app.lifecycle import BatchStatus, Validation
from app.retrying import NothingToRetry, create_retry

router = APIRouter(prefix="/v1/batches")

_WINDOW = re.compile(r"([1-9][0-9]{0,8})([mhd])", re.ASCII)
_METADATA_PARAM = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA_PARAMETER = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}
_MAX_UNIX_SECONDS = 2**53
_UNIT_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}


@router.post("", openapi_extra=json_schema(BatchCreate))
def create_batch(
    service: ServiceDep,
    body: Annotated[BatchCreate, Depends(json_body(BatchCreate))],
    idempotency_key: IdempotencyKey = None,
) -> BatchObject:
    """Queue a job. Its input is checked in the background, its existence included."""
    if body.endpoint not in ENDPOINTS:
        raise unsupported_value("endpoint", body.endpoint, ENDPOINTS)
    window_seconds = _window_seconds(body.completion_window, service.settings.max_completion_window_seconds)
    _check_metadata(body.metadata or {})
    expires_after = body.output_expires_after
    if expires_after is not None:
        check_expiry_seconds("output_expires_after.seconds", expires_after.seconds)
    key = request_key(idempotency_key, "batches", body.model_dump())
    with service.database.begin() as session, unused_key():
        row = create_once(
            session,
            key,
            find=lambda batch_id: batches.get_batch(session, batch_id),
            create=lambda: _create(service, session, body, window_seconds),
        )
        return BatchObject.of(row)


def _create(service: Service, session: Session, body: BatchCreate, window_seconds: int) -> Batch:
    if service.settings.strict_create:
        file = files.live_file(session, body.input_file_id)
        if file is None:
            raise not_found(f"No such File object: {body.input_file_id}", param="input_file_id")
        if file.purpose not in PURPOSES:
            message = f"The file has the purpose '{file.purpose}'; the input of a batch needs 'batch'."
            raise invalid_value("input_file_id", message)
    expires_after = body.output_expires_after
    return batches.create_batch(
        session,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        window_seconds=window_seconds,
        metadata=body.metadata,
        output_expires_seconds=None if expires_after is None else expires_after.seconds,
        priority=body.priority,
        validation=Validation(body.validation),
    )


@router.get("", openapi_extra={"parameters": [_METADATA_PARAMETER]})
def list_batches(
    request: Request,
    service: ServiceDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: BatchStatus | None = None,
    created_after: Annotated[int | None, Query(ge=0, le=_MAX_UNIX_SECONDS)] = None,
) -> BatchList:
    """Jobs, newest first. `after` is the last id of the previous page."""
    metadata = _metadata_filter(request)
    with service.database.read() as session:
        with known_cursor(after):
            rows, has_more = batches.list_batches(
                session,
                after=after,
                limit=limit,
                status=status,
                created_after=created_after,
                metadata=metadata,
            )
        return BatchList.of(rows, has_more)


@router.get("/{batch_id}")
def retrieve_batch(service: ServiceDep, batch_id: str) -> BatchObject:
    """How a batch stands, with its `progress` while it runs."""
    with service.database.read() as session:
        row = found(batches.get_batch(session, batch_id) if may_be_id(batch_id) else None, batch_id)
        return BatchObject.of(row, progress_of(session, row))


@router.post("/{batch_id}/cancel")
def cancel_batch(service: ServiceDep, batch_id: str) -> BatchObject:
    """Ask for an early end: what is finished is kept. Asking again changes nothing."""
    with service.database.begin() as session:
        try:
            row = batches.request_cancel(session, batch_id) if may_be_id(batch_id) else None
        except batches.NotCancellable as error:
            raise conflict(str(error)) from None
        return BatchObject.of(found(row, batch_id))


@router.post("/{batch_id}/pause")
def pause_batch(service: ServiceDep, batch_id: str) -> BatchObject:
    """Take the batch from its worker: what is finished is kept, and its window goes on."""
    return _set_paused(service, batch_id, True)


@router.post("/{batch_id}/resume")
def resume_batch(service: ServiceDep, batch_id: str) -> BatchObject:
    """Let a paused batch run again."""
    return _set_paused(service, batch_id, False)


@router.post("/{batch_id}/retry")
def retry_batch(service: ServiceDep, batch_id: str, idempotency_key: IdempotencyKey = None) -> BatchObject:
    """A new batch of the lines that failed or did not run; `metadata.retry_of` names the old one."""
    key = request_key(idempotency_key, "retry", batch_id)
    with service.database.read() as session, unused_key():
        retry = made_before(session, key, lambda retry_id: batches.get_batch(session, retry_id))
        if retry is not None:
            return BatchObject.of(retry)
        row = found(batches.get_batch(session, batch_id) if may_be_id(batch_id) else None, batch_id)
    try:
        with unused_key(), within_quota():
            retry = create_retry(
                service.database,
                service.storage,
                service.settings,
                row,
                key,
                max_stored_bytes=service.limits.max_stored_bytes,
            )
    except NothingToRetry as error:
        raise conflict(str(error)) from None
    return BatchObject.of(retry)


def _set_paused(service: Service, batch_id: str, paused: bool) -> BatchObject:
    with service.database.begin() as session:
        try:
            row = batches.set_paused(session, batch_id, paused) if may_be_id(batch_id) else None
        except batches.NotPausable as error:
            raise conflict(str(error)) from None
        return BatchObject.of(found(row, batch_id))


@router.delete("/{batch_id}")
def delete_batch(service: ServiceDep, batch_id: str) -> BatchDeleted:
    """Forget a batch that has ended. Its files stay until they expire or are deleted themselves."""
    with service.database.read() as session:
        try:
            is_there = may_be_id(batch_id) and batches.check_has_ended(session, batch_id)
        except batches.NotEnded as error:
            raise conflict(str(error)) from None
    if not is_there:
        raise _no_batch(batch_id)
    forget_batch(service.database, batch_id)
    return BatchDeleted(id=batch_id)


def found(row: Batch | None, batch_id: str) -> Batch:
    """The row; raises `ApiError` 404 if there is none."""
    if row is None:
        raise _no_batch(batch_id)
    return row


def _no_batch(batch_id: str) -> ApiError:
    return not_found(f"No batch found with id '{batch_id}'.", param="id")


def _metadata_filter(request: Request) -> dict[str, str]:
    """Of `?metadata[k]=v&metadata[l]=w`, the keys and the values that a batch must have."""
    wanted: dict[str, str] = {}
    for param, value in request.query_params.multi_items():
        match = _METADATA_PARAM.fullmatch(param)
        if match is None:
            continue
        if "\0" in param + value:
            raise invalid_value("metadata", "Invalid 'metadata': NUL characters are not allowed.")
        if wanted.setdefault(match[1], value) != value:
            raise invalid_value("metadata", f"Invalid '{param}': it was given with two values.")
    return wanted


def _window_seconds(window: str, max_seconds: int) -> int:
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if not 0 < seconds <= max_seconds:
        message = (
            f"Invalid value: '{window}'. completion_window is '24h', or a number of minutes, hours or days "
            f"such as '90m', '12h' or '7d', up to {max_seconds // 86_400} days."
        )
        raise invalid_value("completion_window", message)
    return seconds


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > MAX_METADATA_PAIRS:
        message = f"Invalid 'metadata': {len(metadata)} pairs, but at most {MAX_METADATA_PAIRS} are allowed."
        raise invalid_value("metadata", message)
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY_CHARS:
            message = f"Invalid 'metadata': a key may have at most {MAX_METADATA_KEY_CHARS} characters."
            raise invalid_value("metadata", message)
        if "\0" in key + value:  # Postgres could not search what holds one
            raise invalid_value("metadata", "Invalid 'metadata': NUL characters are not allowed.")
        if len(value) > MAX_METADATA_VALUE_CHARS:
            param = f"metadata.{key}"
            message = f"Invalid '{param}': a value may have at most {MAX_METADATA_VALUE_CHARS} characters."
            raise invalid_value(param, message)
