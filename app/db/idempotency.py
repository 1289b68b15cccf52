"""Keys that make a request safe to repeat: each leads to the one object that its tenant made under it."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.batches import changed_rows
from app.db.models import Batch, File, IdempotencyKey, Upload
from app.db.session import owner_in, unix_now
from app.settings import DAY_SECONDS

KEY_SECONDS = DAY_SECONDS  # how long a key is remembered

Row = TypeVar("Row", File, Upload, Batch)


class KeyReused(Exception):
    """The key has been used for another request."""


class RequestKey(NamedTuple):
    """The client's key, and a sha256 in hexadecimal of all that it asks for."""

    key: str
    digest: str


def create_once(
    session: Session,
    request_key: RequestKey | None,
    *,
    find: Callable[[str], Row | None],
    create: Callable[[], Row],
) -> Row:
    """The object made under this key before, by `find` from its id; else what `create` makes.

    Of equal requests at the same time, all but one wait here until that one is committed or rolled back.
    An object that is gone is made anew. Raises KeyReused.
    """
    if request_key is None:
        return create()
    first_id = _reserve(session, request_key)
    row = None if first_id is None else find(first_id)
    if row is None:
        row = create()
        used = update(IdempotencyKey).where(*_is(session, request_key))
        changed_rows(session, used.values(object_id=row.id))
    return row


def made_before(
    session: Session, request_key: RequestKey | None, find: Callable[[str], Row | None]
) -> Row | None:
    """The object made under this key; None: not yet. Spares the work of making it again. Raises KeyReused."""
    if request_key is None:
        return None
    columns = select(IdempotencyKey.request_digest, IdempotencyKey.object_id)
    known = columns.where(*_is(session, request_key), IdempotencyKey.expires_at > unix_now())
    row = session.execute(known).one_or_none()
    if row is None or row.object_id is None:
        return None
    if row.request_digest != request_key.digest:
        raise KeyReused(request_key.key)
    return find(row.object_id)


def forget_keys(session: Session) -> int:
    """Delete keys whose time is up; how many there were."""
    return changed_rows(session, delete(IdempotencyKey).where(IdempotencyKey.expires_at <= unix_now()))


def _reserve(session: Session, request_key: RequestKey) -> str | None:
    """Lock the key for this transaction; the id of the object made under it. Raises KeyReused."""
    forgotten = delete(IdempotencyKey).where(IdempotencyKey.expires_at <= unix_now())
    changed_rows(session, forgotten.where(*_is(session, request_key)))
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(IdempotencyKey).values(
        owner=owner_in(session),
        key=request_key.key,
        request_digest=request_key.digest,
        expires_at=unix_now() + KEY_SECONDS,
    )
    # An update that changes nothing: it locks the row that is there, and returns it.
    statement = statement.on_conflict_do_update(
        index_elements=[IdempotencyKey.owner, IdempotencyKey.key], set_={"key": statement.excluded.key}
    )
    columns = IdempotencyKey.request_digest, IdempotencyKey.object_id
    digest, object_id = session.connection().execute(statement.returning(*columns)).one()
    if digest != request_key.digest:
        raise KeyReused(request_key.key)
    return None if object_id is None else str(object_id)


def _is(session: Session, request_key: RequestKey) -> tuple[ColumnElement[bool], ...]:
    return IdempotencyKey.owner == owner_in(session), IdempotencyKey.key == request_key.key
