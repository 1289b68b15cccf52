"""What workers tell of a batch's run beyond its counts. Readers go through the batch, which has an owner."""

from typing import Any

from sqlalchemy.orm import Session

from app.db.leases import Claim, locked_status
from app.db.models import BatchTelemetry


def get_telemetry(session: Session, batch_id: str) -> BatchTelemetry | None:
    """What is known of the batch's run; None: nothing."""
    return session.get(BatchTelemetry, batch_id)


def save_telemetry(
    session: Session, claim: Claim, *, outline: dict[str, Any] | None, series: dict[str, Any] | None
) -> None:
    """Store the series, and the outline unless there is one. Raises LeaseLost."""
    locked_status(session, claim.batch_id, claim.epoch)
    row = session.get(BatchTelemetry, claim.batch_id)
    if row is None:
        row = BatchTelemetry(batch_id=claim.batch_id)
        session.add(row)
    row.outline = row.outline or outline
    row.series = series
    session.flush()
