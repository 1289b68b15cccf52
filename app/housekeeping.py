"""What is past its time goes: files, uploads, keys. All of it can be done again after a kill."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from app.db.files import take_expired_files
from app.db.idempotency import forget_keys
from app.db.session import Database
from app.db.uploads import expire_uploads, forget_uploads
from app.settings import DAY_SECONDS
from app.storage import Storage

# For so long a client still hears how its upload ended; after that, that there is none.
UPLOAD_MEMORY_SECONDS = DAY_SECONDS

_ROWS_PER_TRANSACTION = 100


def remove_expired(database: Database, storage: Storage) -> int:
    """Remove everything whose time is up; how many blobs went. Raises OSError and SQLAlchemyError."""
    num_blobs = _remove_blobs(database, storage, take_expired_files)
    num_blobs += _remove_blobs(database, storage, expire_uploads)
    with database.begin() as session:
        forget_uploads(session, UPLOAD_MEMORY_SECONDS)
        forget_keys(session)
    return num_blobs


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
