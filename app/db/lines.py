"""A batch's lines and their results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.batch_input import InputLine
from app.db.batches import changed_rows
from app.db.leases import Claim, LeaseLost, locked_status
from app.db.models import Batch, LineResult, RequestLine
from app.db.usage import add_usage

_READ_CHUNK = 500  # rows held in memory while results are streamed


class DuplicateResult(Exception):
    """One of these lines has a result already; nothing was recorded."""


class PendingLine(NamedTuple):
    """A line to run: the input blob's bytes [offset, offset + length).

    attempts: begun so far, and not taken back: each ended with the death of a worker.
    """

    id: int
    line: int
    custom_id: str
    offset: int
    length: int
    attempts: int


class NewResult(NamedTuple):
    """The final answer to a line. `ok`: for the output file; `payload`: its JSON, without a newline."""

    request_line_id: int
    ok: bool
    attempt: int
    payload: bytes
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class StoredResult(NamedTuple):
    """A recorded answer: a line of the output or error file, without its newline."""

    request_line_id: int
    payload: bytes


def add_request_lines(session: Session, batch_id: str, lines: Sequence[InputLine]) -> None:
    """Insert `lines`, in the order of the file."""
    rows = [
        {
            "batch_id": batch_id,
            "line": line.line,
            "custom_id": line.custom_id,
            "offset": line.offset,
            "length": line.length,
            "attempts": 0,
        }
        for line in lines
    ]
    session.connection().execute(insert(RequestLine), rows)


def skip_lines(session: Session, batch_id: str, payloads: Mapping[int, bytes], among: int) -> None:
    """Give lines an error as their result, before any worker has the batch: `payloads` by physical line.

    They are `among` the so many lines that were added last. The batch's counts are the caller's.
    """
    columns = select(RequestLine.id, RequestLine.line).where(RequestLine.batch_id == batch_id)
    last = session.execute(columns.order_by(RequestLine.id.desc()).limit(among))
    rows = [
        {
            "request_line_id": row.id,
            "batch_id": batch_id,
            "ok": False,
            "attempt": 0,
            "payload": payloads[row.line],
        }
        for row in last
        if row.line in payloads
    ]
    session.connection().execute(insert(LineResult), rows)


def delete_request_lines(session: Session, batch_id: str) -> None:
    """Delete all lines of the batch, results with them."""
    changed_rows(session, delete(RequestLine).where(RequestLine.batch_id == batch_id))


def delete_some_lines(session: Session, batch_id: str, limit: int) -> int:
    """Delete up to `limit` lines of the batch, results with them; how many there were."""
    some = (
        select(RequestLine.id).where(RequestLine.batch_id == batch_id).order_by(RequestLine.id).limit(limit)
    )
    return changed_rows(session, delete(RequestLine).where(RequestLine.id.in_(some)))


def pending_lines(session: Session, batch_id: str) -> list[PendingLine]:
    """Lines without a result, in the order of the file."""
    return list(iter_unfinished(session, batch_id))


def record_attempts(session: Session, claim: Claim, lines: Iterable[PendingLine]) -> None:
    """Count one more attempt at each line, to be committed before they run. Raises LeaseLost."""
    _set_attempts(session, claim, ((line.id, line.attempts + 1) for line in lines))


def undo_attempts(session: Session, claim: Claim, lines: Iterable[PendingLine]) -> None:
    """Take back what `record_attempts` counted: the lines left the engine in order. Raises LeaseLost."""
    _set_attempts(session, claim, ((line.id, line.attempts) for line in lines))


def _set_attempts(session: Session, claim: Claim, attempts_by_id: Iterable[tuple[int, int]]) -> None:
    """Sets and does not add: what an outage hides may have to be done again."""
    locked_status(session, claim.batch_id, claim.epoch)
    # Runs of ids that follow one another: a whole batch is one of them, or a few.
    runs: list[dict[str, int]] = []
    for line_id, attempts in sorted(attempts_by_id):
        if runs and (runs[-1]["last"], runs[-1]["count"]) == (line_id - 1, attempts):
            runs[-1]["last"] = line_id
        else:
            runs.append({"first": line_id, "last": line_id, "count": attempts})
    if runs:
        chosen = RequestLine.id.between(bindparam("first"), bindparam("last"))
        statement = update(RequestLine.__table__).where(chosen)  # type: ignore[arg-type]
        session.connection().execute(statement.values(attempts=bindparam("count")), runs)


def forgive(session: Session, claim: Claim, *, most_deaths: int) -> None:
    """Take up to `most_deaths` deaths off the lines without a result: it is known what they came from.

    A line with more keeps them: they were its own.
    """
    locked_status(session, claim.batch_id, claim.epoch)
    has_result = exists().where(LineResult.request_line_id == RequestLine.id)
    is_pending = and_(RequestLine.batch_id == claim.batch_id, ~has_result)
    lines = update(RequestLine).where(is_pending, RequestLine.attempts <= most_deaths)
    changed_rows(session, lines.values(attempts=0))
    left = session.scalar(select(func.max(RequestLine.attempts)).where(is_pending)) or 0
    changed_rows(session, update(Batch).where(Batch.id == claim.batch_id).values(deaths=left))


def record_results(session: Session, claim: Claim, results: Sequence[NewResult]) -> None:
    """Store the results and add them to the counts of the batch and its tenant, in this one transaction.

    Raises LeaseLost if the epoch has moved on, DuplicateResult if a line has a result; roll back then.
    """
    num_ok = sum(result.ok for result in results)
    counts = {
        "completed": Batch.completed + num_ok,
        "failed": Batch.failed + len(results) - num_ok,
        "input_tokens": Batch.input_tokens + sum(result.input_tokens for result in results),
        "cached_tokens": Batch.cached_tokens + sum(result.cached_tokens for result in results),
        "output_tokens": Batch.output_tokens + sum(result.output_tokens for result in results),
    }
    held = update(Batch).where(Batch.id == claim.batch_id, Batch.epoch == claim.epoch)
    if not changed_rows(session, held.values(counts)):
        raise LeaseLost(f"{claim.batch_id}, epoch {claim.epoch}")
    if not results:
        return
    rows = [
        {
            "request_line_id": result.request_line_id,
            "batch_id": claim.batch_id,
            "ok": result.ok,
            "attempt": result.attempt,
            "payload": result.payload,
        }
        for result in results
    ]
    try:
        session.connection().execute(insert(LineResult), rows)
    except IntegrityError as error:
        raise DuplicateResult(claim.batch_id) from error
    # Last: other workers' results of the same tenant wait for this row.
    add_usage(
        session,
        claim.batch_id,
        requests=len(results),
        input_tokens=sum(result.input_tokens for result in results),
        cached_tokens=sum(result.cached_tokens for result in results),
        output_tokens=sum(result.output_tokens for result in results),
    )


def iter_results(session: Session, batch_id: str, ok: bool) -> Iterator[StoredResult]:
    """Results that succeeded (`ok`) or failed, in the order of the file, a chunk in memory at a time."""
    query = select(LineResult.request_line_id, LineResult.payload).where(
        LineResult.batch_id == batch_id, LineResult.ok == ok
    )
    last_id = 0
    while True:
        page = query.where(LineResult.request_line_id > last_id).order_by(LineResult.request_line_id)
        rows = session.execute(page.limit(_READ_CHUNK)).all()
        yield from (StoredResult(*row) for row in rows)
        if len(rows) < _READ_CHUNK:
            return
        last_id = rows[-1].request_line_id


def iter_unfinished(session: Session, batch_id: str) -> Iterator[PendingLine]:
    """Lines without a result, in the order of the file, a chunk in memory at a time."""
    return _iter_lines(session, batch_id, LineResult.request_line_id.is_(None))


def iter_unsuccessful(session: Session, batch_id: str) -> Iterator[PendingLine]:
    """Lines without an answer for the output file, in the order of the file, a chunk in memory at a time."""
    return _iter_lines(session, batch_id, or_(LineResult.request_line_id.is_(None), ~LineResult.ok))


def _iter_lines(session: Session, batch_id: str, condition: ColumnElement[bool]) -> Iterator[PendingLine]:
    columns = (getattr(RequestLine, name) for name in PendingLine._fields)
    query = (
        select(*columns)
        .outerjoin(LineResult, LineResult.request_line_id == RequestLine.id)
        .where(RequestLine.batch_id == batch_id, condition)
    )
    last_id = 0
    while True:
        page = query.where(RequestLine.id > last_id).order_by(RequestLine.id)
        rows = session.execute(page.limit(_READ_CHUNK)).all()
        yield from (PendingLine(*row) for row in rows)
        if len(rows) < _READ_CHUNK:
            return
        last_id = rows[-1].id
