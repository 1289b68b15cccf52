"""/v1/uploads: a file in parts, which come in any order and side by side, and become one file at the end."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.bodies import PURPOSES, UploadComplete, UploadCreate
from app.api.deps import Service, ServiceDep, json_body, may_be_id, saving
from app.api.description import form_schema, json_schema
from app.api.errors import ApiError, invalid_value, not_found, unsupported_value
from app.api.idempotency import IdempotencyKey, request_key, unused_key
from app.api.incoming import (
    FORM_OVERHEAD_BYTES,
    PART_FIELD,
    FirstLine,
    IncomingPart,
    check_declared_bytes,
    check_expiry_seconds,
    check_filename,
)
from app.api.multipart import FormParser, form_boundary, receive_form
from app.api.schemas import UploadObject, UploadPartObject
from app.db import files, uploads
from app.db.idempotency import create_once
from app.db.models import Upload, UploadPart
from app.storage import BlobNotFound, BlobWriter, Storage

router = APIRouter(prefix="/v1/uploads")

COPY_BYTES = 1 << 20

_PART_FORM = form_schema(PART_FIELD, text_fields={}, required=[PART_FIELD], filename="upload")


@router.post("", openapi_extra=json_schema(UploadCreate))
def create_upload(
    service: ServiceDep,
    body: Annotated[UploadCreate, Depends(json_body(UploadCreate))],
    idempotency_key: IdempotencyKey = None,
) -> UploadObject:
    """Announce a file that is to come in parts."""
    max_bytes = service.settings.max_file_bytes
    if body.purpose not in PURPOSES:
        raise unsupported_value("purpose", body.purpose, PURPOSES)
    if not 1 <= body.bytes <= max_bytes:
        message = f"Invalid value for 'bytes': expected an integer between 1 and {max_bytes}."
        raise invalid_value("bytes", message)
    if body.expires_after is not None:
        check_expiry_seconds("expires_after.seconds", body.expires_after.seconds)
    filename = check_filename(body.filename, "filename")
    key = request_key(idempotency_key, "uploads", body.model_dump())
    with service.database.begin() as session, unused_key():
        row = create_once(
            session,
            key,
            find=lambda upload_id: session.get(Upload, upload_id),
            create=lambda: _create(service, session, body, filename),
        )
        return UploadObject.of(row, files.get_file(session, row.file_id or ""))


@router.post("/{upload_id}/parts", openapi_extra=_PART_FORM)
async def create_part(request: Request, service: ServiceDep, upload_id: str) -> UploadPartObject:
    """Store a part while it arrives. Its place in the file is said when the upload is completed."""
    boundary = form_boundary(request)
    max_bytes = service.settings.max_part_bytes
    check_declared_bytes(request, PART_FIELD, max_bytes)
    await run_in_threadpool(_check_pending, service, upload_id)
    with await run_in_threadpool(service.storage.create) as blob:
        form = FormParser(
            boundary, IncomingPart(blob, max_bytes=max_bytes), file_field=PART_FIELD, text_fields=()
        )
        await receive_form(request, form, max_bytes=max_bytes + FORM_OVERHEAD_BYTES)
        return await run_in_threadpool(_save_part, service, upload_id, blob)


@router.post("/{upload_id}/complete", openapi_extra=json_schema(UploadComplete))
def complete_upload(
    service: ServiceDep, upload_id: str, body: Annotated[UploadComplete, Depends(json_body(UploadComplete))]
) -> UploadObject:
    """Join the parts in the order given. What is refused here can be tried again."""
    with service.database.begin() as session:
        upload = _pending(session, upload_id)
        parts = _in_order(uploads.list_parts(session, upload_id), body.part_ids)
    num_bytes = sum(part.bytes for part in parts)
    if num_bytes != upload.bytes:
        message = f"The parts have {num_bytes} bytes, but the upload was declared with {upload.bytes}."
        raise invalid_value("bytes", message)
    with service.storage.create() as blob:
        try:
            _join(service.storage, parts, blob, service.settings.max_line_bytes, body.md5)
        except BlobNotFound:
            _check_pending(service, upload_id)  # cancelled meanwhile: its blobs are gone
            raise
        return _save_file(service, upload_id, blob)


@router.post("/{upload_id}/cancel")
def cancel_upload(service: ServiceDep, upload_id: str) -> UploadObject:
    """Give up an upload that is pending."""
    with service.database.begin() as session:
        row = _pending(session, upload_id)
        storage_keys = uploads.cancel_upload(session, row)
        answer = UploadObject.of(row)
    _delete(service.storage, storage_keys)
    return answer


def _create(service: Service, session: Session, body: UploadCreate, filename: str) -> Upload:
    row = uploads.create_upload(
        session,
        purpose=body.purpose,
        filename=filename,
        num_bytes=body.bytes,
        expires_seconds=service.settings.upload_seconds,
        file_expires_seconds=None if body.expires_after is None else body.expires_after.seconds,
    )
    service.check_stored_bytes(session)  # its bytes are reserved from now on
    return row


def _pending(session: Session, upload_id: str) -> Upload:
    with _refusals():
        row = uploads.pending_upload(session, upload_id) if may_be_id(upload_id) else None
    if row is None:
        raise not_found(f"No such Upload object: {upload_id}", param="id")
    return row


def _check_pending(service: Service, upload_id: str) -> None:
    with service.database.begin() as session:
        _pending(session, upload_id)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the upload itself does not allow, as a 400."""
    try:
        yield
    except uploads.UploadEnded as error:
        raise ApiError(400, str(error)) from None
    except uploads.TooManyParts as error:
        raise invalid_value(PART_FIELD, str(error)) from None


def _save_part(service: Service, upload_id: str, blob: BlobWriter) -> UploadPartObject:
    with saving(service, blob) as session, _refusals():
        row = uploads.add_part(
            session,
            _pending(session, upload_id),
            num_bytes=blob.num_bytes,
            storage_key=blob.key,
            spare_bytes=service.settings.max_part_bytes,
        )
        service.check_stored_bytes(session)  # a part sent twice is more than was reserved
        return UploadPartObject.of(row)


def _in_order(parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    by_id = {part.id: part for part in parts}
    unknown = next((part_id for part_id in part_ids if part_id not in by_id), None)
    if unknown is not None:
        raise invalid_value("part_ids", f"Invalid 'part_ids': the upload has no part '{unknown}'.")
    if len(set(part_ids)) < len(part_ids):
        raise invalid_value("part_ids", "Invalid 'part_ids': a part was given more than once.")
    return [by_id[part_id] for part_id in part_ids]


def _join(
    storage: Storage, parts: Sequence[UploadPart], blob: BlobWriter, max_line_bytes: int, md5: str | None
) -> None:
    """Copy the parts into `blob`; raises `ApiError` if the content is not what it was said to be."""
    first_line = FirstLine(max_line_bytes)
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        with storage.open(part.storage_key) as source:
            while chunk := source.read(COPY_BYTES):
                first_line.push(chunk)
                digest.update(chunk)
                blob.write(chunk)
    if md5 is not None and digest.hexdigest() != md5.lower():
        message = f"The content has the md5 {digest.hexdigest()}, but {md5} was expected."
        raise invalid_value("md5", message)
    first_line.finish()


def _save_file(service: Service, upload_id: str, blob: BlobWriter) -> UploadObject:
    """The end of the upload, which another may have brought about while this one was copying."""
    with saving(service, blob) as session:
        row = _pending(session, upload_id)
        file, part_keys = uploads.complete_upload(
            session,
            row,
            storage_key=blob.key,
            default_expires_seconds=service.settings.input_retention_seconds,
        )
        answer = UploadObject.of(row, file)
    _delete(service.storage, part_keys)
    return answer


def _delete(storage: Storage, storage_keys: Sequence[str]) -> None:
    for key in storage_keys:
        storage.delete(key)
