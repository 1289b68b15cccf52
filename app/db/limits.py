"""What a tenant may use, and how much of it it has used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from sqlalchemy import case, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.batches import changed_rows
from app.db.locks import lock_key
from app.db.models import Batch, File, RequestWindow, TenantLimits, Upload, UploadPart
from app.db.session import now, unix_now
from app.db.uploads import UploadStatus
from app.lifecycle import TERMINAL
from app.settings import Settings

_MINUTE_SECONDS = 60


class QuotaExceeded(Exception):
    """The tenant has used what it may; the message is for it."""

    @classmethod
    def of_bytes(cls, num_bytes: int, limit: int) -> Self:
        return cls(
            f"You would store {num_bytes:,} bytes, but your limit is {limit:,}: delete files that you no "
            "longer need. Files of finished batches count too."
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may use; the settings of these names say it for all. None: as much as it likes."""

    max_requests_per_minute: int | None
    max_stored_bytes: int | None
    max_requests_per_batch: int
    max_enqueued_requests: int | None
    max_enqueued_tokens: int | None

    @classmethod
    def of(cls, settings: Settings, own: TenantLimits | None) -> Self:
        """The tenant's own limits, or else those of all."""
        values = {name: None if own is None else getattr(own, name) for name in LIMIT_NAMES}
        return cls(**{name: getattr(settings, name) if v is None else v for name, v in values.items()})


LIMIT_NAMES = tuple(field.name for field in fields(Limits))


def limits_of(session: Session, settings: Settings, owner: str) -> Limits:
    return Limits.of(settings, session.get(TenantLimits, owner))


class Minute(NamedTuple):
    """How a tenant stands in this minute, with a request that was just counted or refused."""

    remaining: int
    seconds_left: int
    is_over: bool


def count_request(session: Session, owner: str, limit: int) -> Minute:
    """Count one more request of this minute, unless there were `limit` before it.

    One statement, so that of two requests at the border one is refused; a refusal writes nothing.
    """
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    minute = unix_now() // _MINUTE_SECONDS
    statement = insert(RequestWindow).values(owner=owner, minute=minute, num_requests=1)
    is_past = RequestWindow.minute != statement.excluded.minute
    statement = statement.on_conflict_do_update(
        index_elements=[RequestWindow.owner],
        set_={
            "minute": statement.excluded.minute,
            "num_requests": case((is_past, 1), else_=RequestWindow.num_requests + 1),
        },
        where=or_(is_past, RequestWindow.num_requests < limit),
    )
    row = session.execute(statement.returning(RequestWindow.num_requests, unix_now())).one_or_none()
    num_requests, moment = (limit, now(session)) if row is None else row
    return Minute(limit - num_requests, _MINUTE_SECONDS - moment % _MINUTE_SECONDS, is_over=row is None)


def stored_bytes(session: Session, owner: str) -> int:
    """Bytes of the tenant's files and pending uploads: what these declared, or what has come if more."""
    of_files = select(func.coalesce(func.sum(File.bytes), 0)).where(File.owner == owner)
    parts = (
        select(func.coalesce(func.sum(UploadPart.bytes), 0))
        .where(UploadPart.upload_id == Upload.id)
        .correlate(Upload)
        .scalar_subquery()
    )
    larger = case((parts > Upload.bytes, parts), else_=Upload.bytes)
    of_uploads = select(func.coalesce(func.sum(larger), 0)).where(
        Upload.owner == owner, Upload.status == UploadStatus.PENDING
    )
    return int(session.scalars(of_files).one()) + int(session.scalars(of_uploads).one())


def check_stored_bytes(session: Session, owner: str, limit: int | None) -> None:
    """To be called in the transaction that stores more, after its rows are there. Raises QuotaExceeded."""
    if limit is None:
        return
    lock_tenant(session, owner)
    num_bytes = stored_bytes(session, owner)
    if num_bytes > limit:
        raise QuotaExceeded.of_bytes(num_bytes, limit)


def lock_tenant(session: Session, owner: str) -> None:
    """Until the transaction ends no other gets this lock; on SQLite there is only one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(lock_key(f"tenant:{owner}"))))


class Enqueued(NamedTuple):
    """Requests of a tenant's batches that have not ended, and the tokens they may take at most."""

    num_requests: int
    num_tokens: int


def enqueued(session: Session, owner: str) -> Enqueued:
    sums = func.coalesce(func.sum(Batch.total), 0), func.coalesce(func.sum(Batch.enqueued_tokens), 0)
    query = select(*sums).where(Batch.owner == owner, Batch.status.not_in(TERMINAL))
    num_requests, num_tokens = session.execute(query).one()
    return Enqueued(int(num_requests), int(num_tokens))


def set_limits(session: Session, owner: str, changes: Mapping[str, int]) -> TenantLimits:
    """Give the tenant limits of its own, by the settings' names; those not named stay as they are."""
    row = session.get(TenantLimits, owner)
    if row is None:
        row = TenantLimits(owner=owner)
        session.add(row)
    for name, limit in changes.items():
        setattr(row, name, limit)
    return row


def clear_limits(session: Session, owner: str) -> bool:
    """Let the settings hold for the tenant again; whether it had limits of its own."""
    return changed_rows(session, delete(TenantLimits).where(TenantLimits.owner == owner)) == 1


def list_limits(session: Session) -> Sequence[TenantLimits]:
    """All tenants with limits of their own, by name."""
    return session.scalars(select(TenantLimits).order_by(TenantLimits.owner)).all()
