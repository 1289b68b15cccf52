"""What is past its time goes: files, uploads, batches with their lines, keys, deliveries of webhooks.

All of it can be done again after a kill.
"""

from collections.abc import Callable

from sqlalchemy.orm import Session

from app.db.batches import batches_to_forget, delete_batch
from app.db.deliveries import forget_deliveries
from app.db.direct import delete_direct, overdue_direct
from app.db.files import take_expired_files
from app.db.idempotency import forget_keys
from app.db.lines import delete_some_lines
from app.db.session import Database
from app.db.uploads import expire_uploads, forget_uploads
from app.settings import DAY_SECONDS, Settings
from app.storage import Storage

# For so long a client still hears how its upload ended; after that, that there is none.
UPLOAD_MEMORY_SECONDS = DAY_SECONDS

# For so long it can be looked up in the database what became of a delivery.
DELIVERY_MEMORY_SECONDS = 30 * DAY_SECONDS

_ROWS_PER_TRANSACTION = 100
_LINES_PER_TRANSACTION = 5_000
_BATCHES_AT_ONCE = 20  # the rest waits for the next time: batches that are to run come first


def remove_expired(database: Database, storage: Storage, settings: Settings) -> int:
    """Remove everything whose time is up; how many blobs went. Raises OSError and SQLAlchemyError."""
    num_blobs = _remove_blobs(database, storage, take_expired_files)
    num_blobs += _remove_blobs(database, storage, expire_uploads)
    num_blobs += _remove_overdue_direct(database, storage)
    with database.begin() as session:
        forget_uploads(session, UPLOAD_MEMORY_SECONDS)
        forget_keys(session)
        forget_deliveries(session, DELIVERY_MEMORY_SECONDS)
    with database.read() as session:
        batch_ids = batches_to_forget(session, settings.batch_retention_seconds, _BATCHES_AT_ONCE)
    for batch_id in batch_ids:
        forget_batch(database, batch_id)
    return num_blobs


def forget_batch(database: Database, batch_id: str) -> None:
    """Delete a batch that has ended, with its lines and results; its files live on until they expire."""
    num_lines = _LINES_PER_TRANSACTION
    while num_lines == _LINES_PER_TRANSACTION:  # a transaction for each, so that others need not wait for all
        with database.begin() as session:
            num_lines = delete_some_lines(session, batch_id, _LINES_PER_TRANSACTION)
    with database.begin() as session:
        delete_batch(session, batch_id)


def forget_direct(database: Database, storage: Storage, batch_id: str) -> bool:
    """Delete a direct request, wherever it stands; whether there was one."""
    with database.begin() as session:
        storage_key = delete_direct(session, batch_id)
    if storage_key is None:
        return False
    storage.delete(storage_key)
    return True


def _remove_overdue_direct(database: Database, storage: Storage) -> int:
    """Direct requests whose api was killed while someone waited; how many there were."""
    with database.read() as session:
        batch_ids = overdue_direct(session, _ROWS_PER_TRANSACTION)
    return sum(forget_direct(database, storage, batch_id) for batch_id in batch_ids)


def _remove_blobs(
    database: Database, storage: Storage, take: Callable[[Session, int], tuple[int, list[str]]]
) -> int:
    """Let `take` end rows, some at a time, until it finds no more, and delete the blobs that they named.

    A blob goes after its row: killed in between, it is an orphan that the keeper's sweep removes.
    """
    num_blobs = 0
    num_rows = _ROWS_PER_TRANSACTION
    while num_rows == _ROWS_PER_TRANSACTION:
        with database.begin() as session:
            num_rows, storage_keys = take(session, _ROWS_PER_TRANSACTION)
        for key in storage_keys:
            storage.delete(key)
        num_blobs += len(storage_keys)
    return num_blobs
