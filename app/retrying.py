"""A retry: a new batch of what an ended batch has no answer for."""

from sqlalchemy.orm import Session

from app.db.batches import create_batch, get_batch
from app.db.files import create_file, live_file, named_keys
from app.db.idempotency import RequestKey, create_once
from app.db.limits import check_stored_bytes
from app.db.lines import iter_unsuccessful
from app.db.models import Batch
from app.db.session import Database
from app.lifecycle import BatchStatus, Validation
from app.settings import Settings
from app.storage import BlobNotFound, BlobWriter, Storage

MAX_METADATA_PAIRS = 16
_COPY_BYTES = 1 << 20

_RETRIABLE = (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


class NothingToRetry(Exception):
    """No new batch can be made; the message says why."""


def create_retry(
    database: Database,
    storage: Storage,
    settings: Settings,
    batch: Batch,
    request_key: RequestKey | None = None,
    *,
    max_stored_bytes: int | None = None,
) -> Batch:
    """A new batch with an input file of its own: the lines of `batch` that failed or never ran, unchanged.

    It has the same endpoint, window, priority and way of validation; its metadata says `retry_of`. Under a
    key that was used for it before, the batch made then. Raises NothingToRetry, KeyReused and, where its
    owner would store more than `max_stored_bytes`, QuotaExceeded.
    """
    if batch.status not in _RETRIABLE:
        raise NothingToRetry(f"Cannot retry a batch with status '{batch.status}'.")
    with storage.create() as blob:
        _copy_lines(database, storage, batch, blob)
        if blob.num_bytes == 0:
            raise NothingToRetry("Every request of this batch has succeeded: there is nothing to retry.")
        key = blob.commit()
    # A blob that an error here leaves without a row is the keeper's to remove.
    with database.begin() as session:
        retry = create_once(
            session,
            request_key,
            find=lambda retry_id: get_batch(session, retry_id),
            create=lambda: _create(session, settings, batch, blob, max_stored_bytes),
        )
        is_used = bool(named_keys(session, [key]))
    if not is_used:  # an equal request at the same time was first
        storage.delete(key)
    return retry


def _create(
    session: Session, settings: Settings, batch: Batch, blob: BlobWriter, max_stored_bytes: int | None
) -> Batch:
    file = create_file(
        session,
        purpose="batch",
        filename=f"{batch.id}_retry.jsonl",
        num_bytes=blob.num_bytes,
        storage_key=blob.key,
        expires_seconds=settings.input_retention_seconds,
    )
    check_stored_bytes(session, batch.owner, max_stored_bytes)
    return create_batch(
        session,
        input_file_id=file.id,
        endpoint=batch.endpoint,
        completion_window=batch.completion_window,
        window_seconds=batch.expires_at - batch.created_at,
        metadata=_metadata(batch),
        output_expires_seconds=batch.output_expires_seconds,
        priority=batch.priority,
        validation=Validation(batch.validation),
    )


def _copy_lines(database: Database, storage: Storage, batch: Batch, blob: BlobWriter) -> None:
    with database.read() as session:
        file = live_file(session, batch.input_file_id)
        try:
            if file is None:
                raise BlobNotFound(batch.input_file_id)
            with storage.open(file.storage_key) as source:
                for line in iter_unsuccessful(session, batch.id):
                    source.seek(line.offset)
                    for start in range(0, line.length, _COPY_BYTES):  # a line that was skipped has any length
                        blob.write(source.read(min(_COPY_BYTES, line.length - start)))
                    blob.write(b"\n")
        except BlobNotFound:
            raise NothingToRetry("The input file of this batch is no longer there.") from None


def _metadata(batch: Batch) -> dict[str, str]:
    """The old batch's pairs, as far as they fit beside `retry_of`."""
    kept = [pair for pair in (batch.metadata_ or {}).items() if pair[0] != "retry_of"]
    return {**dict(kept[: MAX_METADATA_PAIRS - 1]), "retry_of": batch.id}
