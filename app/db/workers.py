"""Which workers there are, so that a batch that none of them can run says so."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.db.batches import changed_rows
from app.db.models import Batch, Worker
from app.db.session import now, unix_now
from app.lifecycle import BatchStatus

SIGN_SECONDS = 5.0  # between two signs of life, and so the age of its figures
ALIVE_SECONDS = 45  # without a sign; then a worker counts as gone
_FORGET_SECONDS = 86_400


def give_sign(
    session: Session, worker_id: str, models: Sequence[str], figures: dict[str, Any] | None = None
) -> None:
    """Say that the worker lives, and what it measured (app/metric_names.py)."""
    session.merge(Worker(id=worker_id, models=list(models), seen_at=now(session), figures=figures))
    changed_rows(session, delete(Worker).where(Worker.seen_at < unix_now() - _FORGET_SECONDS))


def sign_off(session: Session, worker_id: str) -> None:
    """The worker is gone."""
    changed_rows(session, delete(Worker).where(Worker.id == worker_id))


def living_workers(session: Session) -> Sequence[Worker]:
    """Those that gave a sign lately."""
    query = select(Worker).where(Worker.seen_at >= unix_now() - ALIVE_SECONDS)
    return session.scalars(query.order_by(Worker.id)).all()


def queue_position(session: Session, batch: Batch) -> int:
    """How many batches wait for a worker before this one."""
    is_before = (Batch.priority > batch.priority) | (
        (Batch.priority == batch.priority)
        & (
            (Batch.created_at < batch.created_at)
            | ((Batch.created_at == batch.created_at) & (Batch.id < batch.id))
        )
    )
    waits = (
        (Batch.status == BatchStatus.IN_PROGRESS) & Batch.lease_owner.is_(None) & Batch.paused_at.is_(None)
    )
    return session.scalars(select(func.count()).select_from(Batch).where(waits, is_before)).one()


def unserved_models(session: Session, models: Sequence[str] | None) -> list[str] | None:
    """What of the batch's models keeps every living worker from it; None: nothing. Empty: no worker lives."""
    alive = living_workers(session)
    missing = [sorted(set(models or ()) - set(worker.models)) for worker in alive]
    return min(missing, key=len, default=[]) if not alive or all(missing) else None
