"""The end of a batch: its results become the output and the error file, and its status a terminal one."""

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.db.batches import transition
from app.db.files import create_file
from app.db.leases import fence
from app.db.lines import StoredResult, delete_request_lines, iter_results, iter_unfinished
from app.db.models import Batch
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.output_lines import unanswered_line
from app.storage import BlobWriter, Storage


class _Ending(NamedTuple):
    """Where a batch goes that nobody works on, and what becomes of its lines without a result."""

    status: BatchStatus
    code: str
    message: str


_EXPIRED = _Ending(
    BatchStatus.EXPIRED,
    "batch_expired",
    "This request could not be executed before the completion window expired.",
)
_ENDINGS = {
    BatchStatus.VALIDATING: _EXPIRED,
    BatchStatus.IN_PROGRESS: _EXPIRED,
    BatchStatus.CANCELLING: _Ending(
        BatchStatus.CANCELLED, "batch_cancelled", "This request was cancelled before it ran."
    ),
    # A batch is finalised when no line is left; should one be, it must not vanish.
    BatchStatus.FINALIZING: _Ending(
        BatchStatus.COMPLETED, "batch_failed", "This request was not executed, by a fault of the service."
    ),
}


class _Output(NamedTuple):
    """A stored output or error file that has no row yet."""

    kind: str  # "output" or "error"
    storage_key: str
    num_bytes: int


def close_batch(database: Database, storage: Storage, batch: Batch, retention_seconds: int) -> None:
    """Shut out who works on `batch`, write its files and end it; nothing if its status has changed since.

    Files are kept for `retention_seconds`, unless the batch says otherwise.
    Raises OSError and SQLAlchemyError; it can then be done again.
    """
    old = BatchStatus(batch.status)
    ending = _ENDINGS[old]
    with database.begin() as session:
        epoch = fence(session, batch.id, status=old, epoch=batch.epoch)
    if epoch is None:
        return
    was_started = batch.in_progress_at is not None
    outputs = _write_outputs(database, storage, batch.id, ending) if was_started else []
    with database.begin() as session:
        is_closed = transition(session, batch.id, old, ending.status, epoch=epoch)
        if is_closed and was_started:
            _name_outputs(session, batch.id, outputs, retention_seconds)
        elif is_closed:
            delete_request_lines(session, batch.id)  # of a validation that did not come to its end
    if not is_closed:
        # Only here: after an error the commit may have happened, and the rows then name these blobs.
        _delete(storage, outputs)


def _write_outputs(database: Database, storage: Storage, batch_id: str, ending: _Ending) -> list[_Output]:
    """Write the lines in the order of the input; a file without lines is not stored."""
    outputs: list[_Output] = []
    try:
        with storage.create() as output, storage.create() as errors, database.read() as session:
            _write(output, (result.payload for result in iter_results(session, batch_id, ok=True)))
            _write(errors, _error_lines(session, batch_id, ending))
            for kind, writer in (("output", output), ("error", errors)):
                if writer.num_bytes:
                    outputs.append(_Output(kind, writer.commit(), writer.num_bytes))
    except BaseException:
        _delete(storage, outputs)
        raise
    return outputs


def _write(writer: BlobWriter, lines: Iterable[bytes]) -> None:
    for line in lines:
        writer.write(line + b"\n")


def _error_lines(session: Session, batch_id: str, ending: _Ending) -> Iterator[bytes]:
    """Lines that failed and lines without a result, merged in the order of the input."""
    failed = iter_results(session, batch_id, ok=False)
    unfinished = (
        StoredResult(line.id, unanswered_line(line.custom_id, ending.code, ending.message))
        for line in iter_unfinished(session, batch_id)
    )
    return (result.payload for result in heapq.merge(failed, unfinished))


def _name_outputs(session: Session, batch_id: str, outputs: list[_Output], retention_seconds: int) -> None:
    """Create the File rows and enter them in the batch."""
    batch = session.get_one(Batch, batch_id)
    for output in outputs:
        file = create_file(
            session,
            owner=batch.owner,
            purpose="batch_output",
            filename=f"{batch_id}_{output.kind}.jsonl",
            num_bytes=output.num_bytes,
            storage_key=output.storage_key,
            expires_seconds=batch.output_expires_seconds or retention_seconds,
        )
        setattr(batch, f"{output.kind}_file_id", file.id)


def _delete(storage: Storage, outputs: list[_Output]) -> None:
    for output in outputs:
        storage.delete(output.storage_key)
