"""How far a batch is, and what it waits for."""

from sqlalchemy.orm import Session

from app.api.schemas import BatchProgress
from app.db.models import Batch
from app.db.workers import queue_position, unserved_models
from app.lifecycle import BatchStatus


def progress_of(session: Session, batch: Batch) -> BatchProgress | None:
    """Of a batch that is validated or in progress; None of any other."""
    if batch.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        return None
    is_validating = batch.status == BatchStatus.VALIDATING
    has_worker = batch.lease_owner is not None
    told = (batch.progress or {}) if is_validating or has_worker else {}
    waits = not is_validating and not has_worker
    position = 0 if has_worker else None
    if waits and batch.paused_at is None:
        position = queue_position(session, batch) + 1
    return BatchProgress(
        lines_read=told.get("lines_read", 0),
        prompt_tokens_done=max(batch.input_tokens, told.get("prompt_tokens_done", 0)),
        output_tokens_done=max(batch.output_tokens, told.get("output_tokens_done", 0)),
        lines_running=told.get("lines_running", 0),
        eta_seconds=told.get("eta_seconds"),
        queue_position=position,
        waiting_for=_waiting_for(session, batch) if waits else None,
    )


def _waiting_for(session: Session, batch: Batch) -> str | None:
    if batch.paused_at is not None:
        return "The batch is paused."
    missing = unserved_models(session, batch.models)
    if missing is None:
        return None
    if not missing:
        return "No worker is ready."
    return f"No worker that is ready serves the model '{missing[0]}'."
