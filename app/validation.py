"""A new batch's input, checked whole: the batch becomes `in_progress` with a row a line, or `failed`."""

import threading
from collections.abc import Iterator
from typing import BinaryIO

from app.batch_input import InputLimits, InputLine, LineError, read_lines
from app.db.batches import transition
from app.db.files import get_file
from app.db.leases import LeaseLost, fence, locked_status
from app.db.lines import add_request_lines, delete_request_lines
from app.db.models import Batch
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import BlobNotFound, Storage

_LINES_PER_TRANSACTION = 2_000  # about 0.1 s of work: how late a cancel is noticed


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
    limits = InputLimits(settings.max_line_bytes, settings.max_requests_per_batch, settings.single_model)
    with opened as blob:
        lines = read_lines(blob, endpoint=batch.endpoint, served_models=settings.served_models, limits=limits)
        try:
            _take_in(database, batch, epoch, lines, settings.max_validation_errors, stop_event)
        except _Interrupted:
            return


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


def _take_in(
    database: Database,
    batch: Batch,
    epoch: int,
    lines: Iterator[InputLine | LineError],
    max_errors: int,
    stop_event: threading.Event,
) -> None:
    """Store the lines chunk by chunk and start the batch; or, from the first error on, collect errors."""
    errors: list[LineError] = []
    models: set[str] = set()
    num_lines = 0
    chunk: list[InputLine] = []
    for line in lines:
        if isinstance(line, LineError):
            errors.append(line)
            if len(errors) == max_errors:
                break
            continue
        num_lines += 1
        models.add(line.model)
        chunk.append(line)
        if len(chunk) == _LINES_PER_TRANSACTION:
            if stop_event.is_set():
                raise _Interrupted
            _store(database, batch, epoch, [] if errors else chunk)
            chunk = []
    if errors:
        _fail(database, batch, epoch, errors)
        return
    _store(database, batch, epoch, chunk)
    with database.begin() as session:
        model = next(iter(models)) if len(models) == 1 else None
        old, new = BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS
        columns = {"total": num_lines, "model": model, "models": sorted(models)}
        transition(session, batch.id, old, new, epoch=epoch, **columns)


def _store(database: Database, batch: Batch, epoch: int, chunk: list[InputLine]) -> None:
    """Insert `chunk` while the batch is still ours and wanted. Raises _Interrupted."""
    try:
        with database.begin() as session:
            if locked_status(session, batch.id, epoch) is not BatchStatus.VALIDATING:
                raise _Interrupted
            if chunk:
                add_request_lines(session, batch.id, chunk)
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
