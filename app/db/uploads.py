"""Uploads in parts. Storage keys that are returned have no row any more: delete blobs after the commit."""

from collections.abc import Collection, Sequence
from enum import StrEnum

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.batches import changed_rows
from app.db.files import create_file
from app.db.ids import new_id
from app.db.models import File, Upload, UploadPart
from app.db.session import now, unix_now

MAX_PARTS = 10_000


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class UploadEnded(Exception):
    """The upload takes no parts any more; `status` says why."""

    def __init__(self, status: UploadStatus) -> None:
        super().__init__(f"Upload is not pending: its status is '{status}'.")
        self.status = status


class TooManyParts(Exception):
    """The upload holds more than it could need; the message says of what."""


def create_upload(
    session: Session,
    *,
    purpose: str,
    filename: str,
    num_bytes: int,
    expires_seconds: int,
    file_expires_seconds: int | None,
) -> Upload:
    """A pending upload of `num_bytes`, to be completed within `expires_seconds`."""
    created_at = now(session)
    upload = Upload(
        id=new_id("upload_"),
        status=UploadStatus.PENDING,
        purpose=purpose,
        filename=filename,
        bytes=num_bytes,
        created_at=created_at,
        expires_at=created_at + expires_seconds,
        file_expires_seconds=file_expires_seconds,
    )
    session.add(upload)
    session.flush()
    return upload


def pending_upload(session: Session, upload_id: str) -> Upload | None:
    """The upload, locked until the transaction ends; None: unknown. Raises UploadEnded."""
    upload = session.get(Upload, upload_id, with_for_update=True)
    if upload is None:
        return None
    status = UploadStatus(upload.status)
    if status is UploadStatus.PENDING and upload.expires_at <= now(session):
        status = UploadStatus.EXPIRED  # the keeper has yet to say so
    if status is not UploadStatus.PENDING:
        raise UploadEnded(status)
    return upload


def add_part(
    session: Session, upload: Upload, *, num_bytes: int, storage_key: str, spare_bytes: int
) -> UploadPart:
    """A part of a pending upload, for a committed blob. Raises TooManyParts.

    A part whose answer was lost is sent again, so that more may lie here than the upload will have; beyond
    twice its size and `spare_bytes` it is not meant to become a file.
    """
    of_upload = select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0))
    num_parts, stored_bytes = session.execute(of_upload.where(UploadPart.upload_id == upload.id)).one()
    if num_parts >= MAX_PARTS:
        raise TooManyParts(f"An upload may have at most {MAX_PARTS} parts.")
    if stored_bytes + num_bytes > 2 * upload.bytes + spare_bytes:
        raise TooManyParts(f"The parts together are far larger than the {upload.bytes} bytes declared.")
    part = UploadPart(
        id=new_id("part_"),
        upload_id=upload.id,
        bytes=num_bytes,
        created_at=now(session),
        storage_key=storage_key,
    )
    session.add(part)
    session.flush()
    return part


def list_parts(session: Session, upload_id: str) -> Sequence[UploadPart]:
    """All parts of the upload, in no order."""
    return session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id)).all()


def complete_upload(
    session: Session, upload: Upload, *, storage_key: str, default_expires_seconds: int
) -> tuple[File, list[str]]:
    """Make the pending upload a file, whose content is the blob `storage_key`; with it, keys of the parts."""
    file = create_file(
        session,
        purpose=upload.purpose,
        filename=upload.filename,
        num_bytes=upload.bytes,
        storage_key=storage_key,
        expires_seconds=upload.file_expires_seconds or default_expires_seconds,
    )
    upload.file_id = file.id
    upload.status = UploadStatus.COMPLETED
    return file, _take_parts(session, [upload.id])


def cancel_upload(session: Session, upload: Upload) -> list[str]:
    """Give the pending upload up; keys of its parts."""
    upload.status = UploadStatus.CANCELLED
    return _take_parts(session, [upload.id])


def expire_uploads(session: Session, limit: int) -> tuple[int, list[str]]:
    """Mark up to `limit` uploads that were not completed in time: how many, and the keys of their parts."""
    query = select(Upload).where(Upload.status == UploadStatus.PENDING, Upload.expires_at <= unix_now())
    uploads = session.scalars(query.limit(limit).with_for_update(skip_locked=True)).all()
    for upload in uploads:
        upload.status = UploadStatus.EXPIRED
    return len(uploads), _take_parts(session, [upload.id for upload in uploads])


def forget_uploads(session: Session, seconds: int) -> int:
    """Delete the rows of uploads that ended and whose time was up `seconds` ago; how many there were."""
    ended = (Upload.status != UploadStatus.PENDING, Upload.expires_at <= unix_now() - seconds)
    return changed_rows(session, delete(Upload).where(*ended))


def _take_parts(session: Session, upload_ids: Collection[str]) -> list[str]:
    """Delete the rows of all parts; the keys of their blobs."""
    statement = delete(UploadPart).where(UploadPart.upload_id.in_(upload_ids))
    return list(session.scalars(statement.returning(UploadPart.storage_key)))
