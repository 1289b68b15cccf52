"""File rows. The blobs are `app.storage`'s: whoever deletes a row deletes its blob after the commit."""

from collections.abc import Collection, Sequence
from typing import Literal

from sqlalchemy import delete, exists, or_, select
from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.models import DEFAULT_OWNER, Batch, File, UploadPart
from app.db.pages import page_of
from app.db.session import now, unix_now
from app.lifecycle import TERMINAL

# A tenant cannot hold another's file by naming it as an input.
_IS_IN_USE = exists().where(
    Batch.input_file_id == File.id, Batch.owner == File.owner, Batch.status.not_in(TERMINAL)
)


class FileInUse(Exception):
    """The file is the input of a batch that has not ended."""


def create_file(
    session: Session,
    *,
    purpose: str,
    filename: str,
    num_bytes: int,
    storage_key: str,
    expires_seconds: int | None,
    owner: str = DEFAULT_OWNER,
) -> File:
    """A row for a committed blob. `expires_seconds`: after its creation, or None for never.

    `owner`: for the service's own sessions; in a tenant's session every new row is the tenant's.
    """
    created_at = now(session)
    file = File(
        id=new_id("file-"),
        owner=owner,
        purpose=purpose,
        filename=filename,
        bytes=num_bytes,
        created_at=created_at,
        expires_at=None if expires_seconds is None else created_at + expires_seconds,
        storage_key=storage_key,
    )
    session.add(file)
    session.flush()
    return file


def get_file(session: Session, file_id: str) -> File | None:
    """The file, expired or not, or None."""
    return session.get(File, file_id)


def live_file(session: Session, file_id: str) -> File | None:
    """The file, or None where there is none or its time is up."""
    file = session.get(File, file_id)
    return None if file is None or not file.is_there_at(now(session)) else file


def list_files(
    session: Session,
    *,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
    purpose: str | None = None,
) -> tuple[Sequence[File], bool]:
    """Up to `limit` files after the file `after`, by time of creation, and whether there are more.

    Expired ones are left out. Raises UnknownCursor if there is no file `after`.
    """
    query = select(File).where(or_(File.expires_at.is_(None), File.expires_at > unix_now()))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    return page_of(session, query, File, after=after, limit=limit, order=order)


def delete_file(session: Session, file_id: str) -> str | None:
    """Delete the row; returns the key of the blob to delete once this is committed, None if there is no row.

    Raises FileInUse.
    """
    file = session.get(File, file_id, with_for_update=True)
    if file is None:
        return None
    if session.scalar(select(File.id).where(File.id == file_id, _IS_IN_USE)) is not None:
        raise FileInUse(file_id)
    session.delete(file)
    session.flush()
    return file.storage_key


def take_expired_files(session: Session, limit: int) -> tuple[int, list[str]]:
    """Delete up to `limit` rows of expired files that no batch needs: how many, and the keys of the blobs."""
    query = select(File.id).where(File.expires_at <= unix_now(), ~_IS_IN_USE)
    file_ids = session.scalars(query.limit(limit).with_for_update(of=File, skip_locked=True)).all()
    statement = delete(File).where(File.id.in_(file_ids)).returning(File.storage_key)
    return len(file_ids), list(session.scalars(statement))


def named_keys(session: Session, storage_keys: Collection[str]) -> set[str]:
    """Those of `storage_keys` that belong to a file or to a part of one."""
    columns = (File.storage_key, UploadPart.storage_key)
    queries = (select(column).where(column.in_(storage_keys)) for column in columns)
    return {key for query in queries for key in session.scalars(query)}
