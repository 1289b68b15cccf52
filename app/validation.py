"""A new batch's input, checked whole: the batch becomes `in_progress` with a row a line, or `failed`."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy.orm import Session

from app.batch_input import InputLimits, InputLine, LineError, read_lines
from app.db.batches import tell_progress, transition
from app.db.files import get_file
from app.db.leases import LeaseLost, fence, locked_status
from app.db.limits import Limits, enqueued, limits_of, lock_tenant
from app.db.lines import add_request_lines, delete_request_lines, skip_lines
from app.db.models import Batch
from app.db.session import Database
from app.lifecycle import BatchStatus, Validation
from app.output_lines import answered_line
from app.settings import Settings
from app.storage import BlobNotFound, Storage

_MAX_TOKENS = 2**50  # so that the database can add up a thousand batches
_LINES_PER_TRANSACTION = 2_000  # about 0.1 s of work: how late a cancel is noticed

log = logging.getLogger(__name__)


class _Interrupted(Exception):
    """The batch is not ours to validate any more, or the keeper stops. Never leaves this module."""


def validate_batch(
    database: Database, storage: Storage, batch: Batch, settings: Settings, stop_event: threading.Event
) -> None:
    """Validate `batch`, unless it is cancelled or `stop_event` is set meanwhile: then nothing is decided."""
    with database.begin() as session:
        epoch = fence(session, batch.id, status=BatchStatus.VALIDATING, epoch=batch.epoch)
        if epoch is None:
            return  # cancelled since it was read
        delete_request_lines(session, batch.id)  # left by a keeper that was killed
    opened = _open_input(database, storage, batch)
    if isinstance(opened, LineError):
        _fail(database, batch, epoch, [opened])
        return
    skips = batch.validation == Validation.SKIP
    with database.read() as session:
        tenant_limits = limits_of(session, settings, batch.owner)
    limits = InputLimits(
        settings.max_line_bytes,
        tenant_limits.max_requests_per_batch,
        settings.max_embedding_inputs_per_batch,
        settings.single_model,
        settings.default_max_tokens,
    )
    with opened as blob:
        lines = read_lines(blob, endpoint=batch.endpoint, served_models=settings.served_models, limits=limits)
        try:
            taken = (_skipped(line, batch.id) if skips else line for line in lines)
            started = time.monotonic()
            max_errors = settings.max_validation_errors
            num_lines = _take_in(database, batch, epoch, taken, max_errors, tenant_limits, stop_event)
        except _Interrupted:
            return
    seconds = round(time.monotonic() - started, 2)
    told = {"batch_id": batch.id, "lines": num_lines, "validation_seconds": seconds}
    log.info("Read the %d good lines of %s in %.2f s.", num_lines, batch.id, seconds, extra=told)


def _open_input(database: Database, storage: Storage, batch: Batch) -> BinaryIO | LineError:
    """The batch's input blob, or why there is none."""
    with database.read() as session:
        file = get_file(session, batch.input_file_id)
    if file is not None and file.owner != batch.owner:
        file = None  # to say more would tell that it exists
    if file is not None and not file.is_there_at(batch.created_at):
        file = None  # what expires later stays the batch's until it ends
    if file is not None and file.purpose != "batch":
        message = f"The file {file.id} has the purpose '{file.purpose}'; the input of a batch needs 'batch'."
        return LineError("invalid_request", message, "file_id", None)
    try:
        if file is None:
            raise BlobNotFound(batch.input_file_id)
        return storage.open(file.storage_key)
    except BlobNotFound:
        message = (
            f"Cannot find file {batch.input_file_id}, or organization default does not have access to it."
        )
        return LineError("invalid_request", message, "file_id", None)


class _SkippedLine(NamedTuple):
    """An invalid line that is to become an error line: its row and its payload."""

    row: InputLine
    payload: bytes


def _skipped(line: InputLine | LineError, batch_id: str) -> InputLine | LineError | _SkippedLine:
    """An invalid line as one to skip; what is wrong with the file as a whole stays an error.

    Without a custom_id of its own it gets one that no line of the file can have: the batch's id is younger.
    """
    if isinstance(line, InputLine) or line.line is None or line.place is None:
        return line
    offset, length, own_id = line.place
    custom_id = f"{batch_id}_line_{line.line}" if own_id is None else own_id
    error = {"message": line.message, "type": "invalid_request_error", "param": line.param, "code": line.code}
    payload = answered_line(custom_id, 400, {"error": error | {"line": line.line}})
    return _SkippedLine(InputLine(line.line, custom_id, offset, length, model=""), payload)


def _take_in(
    database: Database,
    batch: Batch,
    epoch: int,
    lines: Iterator[InputLine | LineError | _SkippedLine],
    max_errors: int,
    limits: Limits,
    stop_event: threading.Event,
) -> int:
    """Store the lines chunk by chunk and start the batch; or, from the first error on, collect errors.

    A batch that has only lines to skip is finished at once. Returns the number of lines without an error.
    """
    errors: list[LineError] = []
    models: set[str] = set()
    num_lines = num_skipped = num_tokens = 0
    chunk: list[InputLine | _SkippedLine] = []
    for line in lines:
        if isinstance(line, LineError):
            errors.append(line)
            if len(errors) == max_errors:
                break
            continue
        num_lines += 1
        if isinstance(line, _SkippedLine):
            num_skipped += 1
        else:
            models.add(line.model)
            num_tokens += line.num_tokens
        chunk.append(line)
        if len(chunk) == _LINES_PER_TRANSACTION:
            if stop_event.is_set():
                raise _Interrupted
            _store(database, batch, epoch, [] if errors else chunk, num_lines)
            chunk = []
    if errors:
        _fail(database, batch, epoch, errors)
        return num_lines
    _store(database, batch, epoch, chunk, num_lines)
    columns = {
        "total": num_lines,
        "failed": num_skipped,
        "model": next(iter(models)) if len(models) == 1 else None,
        "models": sorted(models),
        "enqueued_tokens": min(num_tokens, _MAX_TOKENS),
    }
    with database.begin() as session:
        refusal = _over_quota(session, batch.owner, limits, columns)
        if refusal is None:
            old, new = BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS
            is_ours = transition(session, batch.id, old, new, epoch=epoch, **columns)
            if is_ours and num_skipped == num_lines:  # nothing is left for a worker
                transition(session, batch.id, new, BatchStatus.FINALIZING, epoch=epoch)
    if refusal is not None:
        _fail(database, batch, epoch, [refusal])
    return num_lines


def _over_quota(session: Session, owner: str, limits: Limits, columns: dict[str, Any]) -> LineError | None:
    """Why a batch with these columns is too much beside the tenant's others; no other can start meanwhile."""
    if limits.max_enqueued_requests is None and limits.max_enqueued_tokens is None:
        return None
    lock_tenant(session, owner)
    others = enqueued(session, owner)
    for kind, code, limit, used, new in (
        (
            "request",
            "request_limit_exceeded",
            limits.max_enqueued_requests,
            others.num_requests,
            columns["total"],
        ),
        (
            "token",
            "token_limit_exceeded",
            limits.max_enqueued_tokens,
            others.num_tokens,
            columns["enqueued_tokens"],
        ),
    ):
        if limit is not None and used + new > limit:
            message = (
                f"Enqueued {kind} limit reached for {columns['model'] or 'several models'} in organization "
                f"{owner}. Limit: {limit:,} enqueued {kind}s; this batch has {new:,}, others that have not "
                f"ended have {used:,}. Please try again once some in_progress batches have been completed."
            )
            return LineError(code, message, None, None)
    return None


def _store(
    database: Database, batch: Batch, epoch: int, chunk: Sequence[InputLine | _SkippedLine], num_read: int
) -> None:
    """Insert `chunk` while the batch is ours and wanted, and tell how far we are. Raises _Interrupted."""
    rows = [line.row if isinstance(line, _SkippedLine) else line for line in chunk]
    payloads = {line.row.line: line.payload for line in chunk if isinstance(line, _SkippedLine)}
    try:
        with database.begin() as session:
            if locked_status(session, batch.id, epoch) is not BatchStatus.VALIDATING:
                raise _Interrupted
            tell_progress(session, batch.id, {"lines_read": num_read})
            if rows:
                add_request_lines(session, batch.id, rows)
            if payloads:
                skip_lines(session, batch.id, payloads, among=len(rows))
    except LeaseLost as error:
        raise _Interrupted from error


def _fail(database: Database, batch: Batch, epoch: int, errors: list[LineError]) -> None:
    """End the batch as `failed` and forget its lines, unless it has been cancelled meanwhile."""
    data = [error.as_dict() for error in errors]
    with database.begin() as session:
        if transition(
            session, batch.id, BatchStatus.VALIDATING, BatchStatus.FAILED, epoch=epoch, errors=data
        ):
            delete_request_lines(session, batch.id)
