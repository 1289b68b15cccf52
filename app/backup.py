"""`batchllm backup`: a copy of a service's data, taken while it runs, from which another can start.

A blob is there before the row that names it and goes after it. So the files are copied, then the database,
then the files that came meanwhile: what the copied rows name is then among the copied files, but for a file
that was made and deleted during the backup.
"""

import os
import shutil
import sqlite3
from pathlib import Path

from app.db.session import Database
from app.settings import Settings, StartupError
from app.storage import DirectoryStorage, is_key

DATABASE_NAME = "batchllm.db"


def back_up(settings: Settings, target: Path) -> int:
    """Copy files and SQLite database into the directory `target`; how many files it holds then. StartupError.

    On Postgres, and for files in an object store, only the other half is copied. Files that are there already
    are not copied again: their content never changes.
    """
    database = Database(settings.resolved_database_url)
    blobs = settings.data_dir.expanduser().resolve() / "blobs"
    copy = target / DATABASE_NAME
    try:
        if database.is_sqlite and not Path(str(database.url.database)).is_file():
            raise StartupError(f"There is no database {database}: check --data-dir or --database-url.")
        if database.is_sqlite and copy.exists():
            raise StartupError(f"{copy} is there already: choose a new directory for each backup.")
        (target / "blobs").mkdir(parents=True, exist_ok=True)
        has_blobs = settings.storage_url is None and blobs.is_dir()
        if has_blobs:
            _copy_blobs(blobs, target / "blobs")
        if database.is_sqlite:
            _copy_database(Path(str(database.url.database)), copy)
            if has_blobs:
                _copy_blobs(blobs, target / "blobs")
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"The backup to {target} is not complete ({error}): do not use it.") from error
    finally:
        database.dispose()
    return sum(1 for _ in DirectoryStorage(target).list_blobs())


def _copy_blobs(source: Path, target: Path) -> None:
    """Finished blobs, each under its name once it is whole; one that is deleted meanwhile is left out."""
    for entry in source.iterdir():
        path = target / entry.name
        if not is_key(entry.name) or path.exists():
            continue
        draft = target / f"{entry.name}.tmp"
        try:
            shutil.copyfile(entry, draft)
        except FileNotFoundError:
            if entry.exists():
                raise
            continue
        _sync(draft)
        draft.replace(path)
    _sync(target)


def _copy_database(source: Path, target: Path) -> None:
    """One snapshot, that no writer waits for."""
    draft = target.with_name(f"{target.name}.tmp")
    draft.unlink(missing_ok=True)
    connection = sqlite3.connect(source, timeout=60)
    try:
        connection.execute("VACUUM INTO ?", (str(draft),))
    finally:
        connection.close()
    _sync(draft)
    draft.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
