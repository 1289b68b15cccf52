"""What has become of a batch's lines, while it runs and after."""

from typing import Literal, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.models import LineResult, RequestLine

OutcomeStatus = Literal["completed", "failed", "pending"]


class Outcome(NamedTuple):
    """A line and its recorded answer. `payload` is None as long as there is none."""

    request_line_id: int
    custom_id: str
    payload: bytes | None


def id_of_line(session: Session, batch_id: str, line: int) -> int:
    """The highest row id up to the physical `line` of the batch's input; 0 where there is none."""
    up_to = (RequestLine.batch_id == batch_id, RequestLine.line <= line)
    return session.scalar(select(func.max(RequestLine.id)).where(*up_to)) or 0


def outcomes_after(
    session: Session, batch_id: str, last_id: int, *, status: OutcomeStatus | None, limit: int
) -> list[Outcome]:
    """Up to `limit` lines behind the row `last_id`, in the order of the file: those with this status.

    None: those that have a result.
    """
    query = (
        select(RequestLine.id, RequestLine.custom_id, LineResult.payload)
        .outerjoin(LineResult, LineResult.request_line_id == RequestLine.id)
        .where(RequestLine.batch_id == batch_id, RequestLine.id > last_id)
    )
    if status == "pending":
        query = query.where(LineResult.request_line_id.is_(None))
    elif status is None:
        query = query.where(LineResult.request_line_id.is_not(None))
    else:
        query = query.where(LineResult.ok == (status == "completed"))
    rows = session.execute(query.order_by(RequestLine.id).limit(limit))
    return [Outcome(row.id, row.custom_id, row.payload) for row in rows]
