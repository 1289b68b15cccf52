"""/v1/files: what goes in is stored byte for byte while it arrives; what comes out is streamed."""

from dataclasses import astuple
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.bodies import MAX_EXPIRY_SECONDS, MIN_EXPIRY_SECONDS, PURPOSES
from app.api.deps import Service, ServiceDep, known_cursor, may_be_id, saving
from app.api.description import form_schema
from app.api.download import blob_response
from app.api.errors import conflict, not_found
from app.api.idempotency import IdempotencyKey, request_key, unused_key
from app.api.incoming import (
    FILE_FIELD,
    FORM_OVERHEAD_BYTES,
    TEXT_FIELDS,
    HashedSink,
    IncomingFields,
    IncomingFile,
    check_declared_bytes,
)
from app.api.multipart import FormParser, form_boundary, receive_form
from app.api.schemas import FileDeleted, FileList, FileObject
from app.db import files
from app.db.idempotency import RequestKey, create_once
from app.db.models import File
from app.storage import BlobWriter

router = APIRouter(prefix="/v1/files")

_UPLOAD_FORM = form_schema(
    FILE_FIELD,
    text_fields={
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_EXPIRY_SECONDS,
            "maximum": MAX_EXPIRY_SECONDS,
        },
    },
    required=[FILE_FIELD, "purpose"],
    filename="in.jsonl",
)
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", **_BYTES},
    206: {"description": "The range asked for.", **_BYTES},
    304: {"description": "The client has it already."},
}


@router.post("", openapi_extra=_UPLOAD_FORM)
async def create_file(
    request: Request, service: ServiceDep, idempotency_key: IdempotencyKey = None
) -> FileObject:
    """Store a file: its bytes go to disk as they come."""
    boundary = form_boundary(request)
    max_bytes = service.settings.max_file_bytes
    num_bytes = check_declared_bytes(request, FILE_FIELD, max_bytes)
    if idempotency_key is None:  # else it may be stored already
        await run_in_threadpool(service.check_room, num_bytes)
    with await run_in_threadpool(service.storage.create) as blob:
        content = HashedSink(blob)
        incoming = IncomingFile(content, max_bytes=max_bytes, max_line_bytes=service.settings.max_line_bytes)
        form = FormParser(boundary, incoming, file_field=FILE_FIELD, text_fields=TEXT_FIELDS)
        await receive_form(request, form, max_bytes=max_bytes + FORM_OVERHEAD_BYTES)
        fields = incoming.finish()
        key = request_key(idempotency_key, "files", [*astuple(fields), content.hexdigest()])
        return await run_in_threadpool(save_file, service, fields, blob, key)


@router.get("")
def list_files(
    service: ServiceDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(pattern=r"^[\x20-\x7e]*$")] = None,
) -> FileList:
    """Files by age. `after` is the last id of the previous page."""
    with service.database.read() as session:
        with known_cursor(after):
            rows, has_more = files.list_files(session, after=after, limit=limit, order=order, purpose=purpose)
        return FileList.of(rows, has_more)


@router.get("/{file_id}")
def retrieve_file(service: ServiceDep, file_id: str) -> FileObject:
    """What is known of a file."""
    with service.database.read() as session:
        return FileObject.of(_find(session, file_id))


@router.delete("/{file_id}")
def delete_file(service: ServiceDep, file_id: str) -> FileDeleted:
    """Delete a file for good; 409 while it is the input of a batch that has not ended."""
    with service.database.begin() as session:
        storage_key = _find(session, file_id).storage_key
        try:
            files.delete_file(session, file_id)
        except files.FileInUse:
            message = f"The file '{file_id}' is the input of a batch that has not ended."
            raise conflict(message, code="file_in_use") from None
    service.storage.delete(storage_key)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=Response, responses=_CONTENT)
@router.head("/{file_id}/content", include_in_schema=False)
def file_content(request: Request, service: ServiceDep, file_id: str) -> Response:
    """The stored bytes, unchanged. Serves single ranges."""
    with service.database.read() as session:
        row = _find(session, file_id)
        filename, storage_key, num_bytes = row.filename, row.storage_key, row.bytes
    return blob_response(
        request,
        lambda: service.storage.open(storage_key),
        num_bytes=num_bytes,
        filename=filename,
        etag=file_id,
    )


def save_file(
    service: Service, fields: IncomingFields, blob: BlobWriter, key: RequestKey | None
) -> FileObject:
    """A file row for an upload that has come in whole."""
    with saving(service, blob) as session, unused_key():
        row = create_once(
            session,
            key,
            find=lambda file_id: files.live_file(session, file_id),
            create=lambda: _create(service, session, fields, blob.key),
        )
        answer = FileObject.of(row)
    if row.storage_key != blob.key:
        service.storage.delete(blob.key)  # the file has been uploaded before
    return answer


def _create(service: Service, session: Session, fields: IncomingFields, storage_key: str) -> File:
    row = files.create_file(
        session,
        purpose=fields.purpose,
        filename=fields.filename,
        num_bytes=fields.num_bytes,
        storage_key=storage_key,
        expires_seconds=fields.expires_seconds or service.settings.input_retention_seconds,
    )
    service.check_stored_bytes(session)
    return row


def _find(session: Session, file_id: str) -> File:
    row = files.live_file(session, file_id) if may_be_id(file_id) else None
    if row is None:
        raise not_found(f"No such File object: {file_id}", param="id")
    return row
