"""How far a batch is, and what it waits for."""

from sqlalchemy.orm import Session

from app.api.schemas import BatchProgress
from app.db.models import Batch
from app.db.workers import queue_position, unserved_models
from app.lifecycle import BatchStatus


def progress_of(session: Session, batch: Batch) -> BatchProgress | None:
    """Of a batch in progress; None of any other."""
    if batch.status != BatchStatus.IN_PROGRESS:
        return None
    told = (batch.progress or {}) if batch.lease_owner is not None else {}
    has_worker = batch.lease_owner is not None
    position = 0 if has_worker else queue_position(session, batch) + 1
    return BatchProgress(
        prompt_tokens_done=max(batch.input_tokens, told.get("prompt_tokens_done", 0)),
        output_tokens_done=max(batch.output_tokens, told.get("output_tokens_done", 0)),
        lines_running=told.get("lines_running", 0),
        eta_seconds=told.get("eta_seconds"),
        queue_position=None if batch.paused_at is not None and not has_worker else position,
        waiting_for=None if has_worker else _waiting_for(session, batch),
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
