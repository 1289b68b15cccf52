"""Batch rows: creation, lists, and the one way to change a status."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import CursorResult, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.deliveries import announce
from app.db.ids import new_id
from app.db.models import Batch
from app.db.pages import page_of
from app.db.session import json_text, now, unix_now
from app.lifecycle import CANCELLABLE, TERMINAL, TRANSITIONS, BatchStatus, Validation, timestamp_column


class NotCancellable(Exception):
    """The batch has ended otherwise; `status` says how."""

    def __init__(self, status: BatchStatus) -> None:
        super().__init__(f"Cannot cancel a batch with status '{status}'.")
        self.status = status


class NotPausable(Exception):
    """The batch has ended, or is about to; the message says it to the user."""


class NotEnded(Exception):
    """The batch is still to run; `status` says how far it is."""

    def __init__(self, status: BatchStatus) -> None:
        super().__init__(f"Cannot delete a batch with status '{status}'.")
        self.status = status


def create_batch(
    session: Session,
    *,
    input_file_id: str,
    endpoint: str,
    completion_window: str,
    window_seconds: int,
    metadata: dict[str, str] | None,
    output_expires_seconds: int | None = None,
    priority: int = 0,
    validation: Validation = Validation.STRICT,
) -> Batch:
    """A new batch in status `validating`, expiring `window_seconds` from now.

    `output_expires_seconds`: how long its files are kept from their creation; None: the default.
    """
    created_at = now(session)
    batch = Batch(
        id=new_id("batch_"),
        endpoint=endpoint,
        input_file_id=input_file_id,
        completion_window=completion_window,
        metadata_=metadata,
        output_expires_seconds=output_expires_seconds,
        priority=priority,
        validation=validation,
        status=BatchStatus.VALIDATING,
        created_at=created_at,
        expires_at=created_at + window_seconds,
    )
    session.add(batch)
    session.flush()
    return batch


def get_batch(session: Session, batch_id: str) -> Batch | None:
    """The batch, or None."""
    return session.get(Batch, batch_id)


def list_batches(
    session: Session,
    *,
    after: str | None,
    limit: int,
    status: BatchStatus | None = None,
    created_after: int | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Sequence[Batch], bool]:
    """Up to `limit` batches after the batch `after`, newest first, and whether there are more.

    Where given: in this `status`, created after `created_after` (unix seconds), with all of `metadata`.
    Raises UnknownCursor if there is no batch `after`.
    """
    query = select(Batch).where(*(json_text(Batch.metadata_, key) == text for key, text in metadata.items()))
    if status is not None:
        query = query.where(Batch.status == status)
    if created_after is not None:
        query = query.where(Batch.created_at > created_after)
    return page_of(session, query, Batch, after=after, limit=limit, order="desc")


def check_has_ended(session: Session, batch_id: str) -> bool:
    """Whether there is such a batch. Raises NotEnded if its life is not over."""
    status = session.scalar(select(Batch.status).where(Batch.id == batch_id))
    if status is not None and status not in TERMINAL:
        raise NotEnded(BatchStatus(status))
    return status is not None


def delete_batch(session: Session, batch_id: str) -> None:
    """Delete the row of a batch that has ended, and whatever lines of it are left."""
    changed_rows(session, delete(Batch).where(Batch.id == batch_id, Batch.status.in_(TERMINAL)))


def transition(
    session: Session,
    batch_id: str,
    old: BatchStatus,
    new: BatchStatus,
    *,
    epoch: int | None = None,
    **columns: Any,
) -> bool:
    """Move the batch from `old` to `new`, stamp the time and set `columns`, if it is in `old` and `epoch`.

    Returns whether it was; the owner's webhooks then hear of an end. Raises ValueError if the life of a
    batch has no such step.
    """
    if new not in TRANSITIONS[old]:
        raise ValueError(f"a batch cannot go from {old} to {new}")
    statement = update(Batch).where(Batch.id == batch_id, Batch.status == old)
    if epoch is not None:
        statement = statement.where(Batch.epoch == epoch)
    columns |= {"status": new, timestamp_column(new): unix_now()}
    if changed_rows(session, statement.values(columns)) == 0:
        return False
    if new in TERMINAL:
        announce(session, batch_id, new)
    return True


def tell_progress(session: Session, batch_id: str, progress: dict[str, Any]) -> None:
    """Let who asks see how far the batch is; who runs it later tells anew."""
    changed_rows(session, update(Batch).where(Batch.id == batch_id).values(progress=progress))


def request_cancel(session: Session, batch_id: str) -> Batch | None:
    """Ask for the batch to be cancelled; one that is cancelled or about to be stays as it is. None: unknown.

    Raises NotCancellable if it has ended otherwise.
    """
    batch = session.get(Batch, batch_id, with_for_update=True)
    if batch is None:
        return None
    status = BatchStatus(batch.status)
    if status in CANCELLABLE:
        transition(session, batch_id, status, BatchStatus.CANCELLING)
        session.refresh(batch)
    elif status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        raise NotCancellable(status)
    return batch


def set_paused(session: Session, batch_id: str, paused: bool) -> Batch | None:
    """Keep workers from the batch, or let them have it again; asking twice changes nothing. None: unknown.

    Its window goes on. Raises NotPausable unless it is still to run.
    """
    batch = session.get(Batch, batch_id, with_for_update=True)
    if batch is None:
        return None
    if batch.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        raise NotPausable(f"Cannot {'pause' if paused else 'resume'} a batch with status '{batch.status}'.")
    if not paused:
        batch.paused_at = None
    elif batch.paused_at is None:
        batch.paused_at = now(session)
    return batch


def batches_to_close(session: Session) -> Sequence[Batch]:
    """Batches that need an end and that nobody works on: finished, cancelled or past their window.

    Direct requests have no end: they vanish.
    """
    has_no_lease = or_(Batch.lease_owner.is_(None), Batch.lease_expires_at <= unix_now())
    expires = Batch.status.in_([BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS])
    query = select(Batch).where(
        ~Batch.is_direct,
        or_(
            Batch.status == BatchStatus.FINALIZING,
            and_(Batch.status == BatchStatus.CANCELLING, has_no_lease),
            and_(expires, Batch.expires_at <= unix_now()),
        ),
    )
    return session.scalars(query.order_by(Batch.created_at, Batch.id)).all()


def batches_to_forget(session: Session, seconds: int, limit: int) -> Sequence[str]:
    """Ids of up to `limit` batches that ended `seconds` ago or earlier."""
    ended_at = func.coalesce(Batch.completed_at, Batch.failed_at, Batch.expired_at, Batch.cancelled_at)
    query = select(Batch.id).where(Batch.status.in_(TERMINAL), ended_at <= unix_now() - seconds)
    return session.scalars(query.limit(limit)).all()


def batches_to_validate(session: Session) -> Sequence[Batch]:
    """New batches whose window is open, oldest first."""
    query = select(Batch).where(Batch.status == BatchStatus.VALIDATING, Batch.expires_at > unix_now())
    return session.scalars(query.order_by(Batch.created_at, Batch.id)).all()


def changed_rows(session: Session, statement: Any) -> int:
    """How many rows an UPDATE or DELETE touched."""
    result = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)
    return int(result.rowcount)
