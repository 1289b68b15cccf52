"""The database's schema: brought up to date by the migrations, or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DatabaseError

import migrations
from app.db.locks import lock_key
from app.db.session import Database
from app.settings import StartupError

_LOCK = "migrate"


def migrate(database: Database) -> None:
    """Bring the schema up to date; safe in several processes at once, and all or nothing.

    Raises StartupError if the database cannot be reached or written to, or has a newer schema than this code.
    """
    try:
        with _migration_connection(database) as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            script = ScriptDirectory.from_config(alembic_config())
            known = {revision.revision for revision in script.walk_revisions()}
            if current is not None and current not in known:
                raise StartupError(
                    f"The database {database} has a newer schema ({current}) than this batchllm knows; "
                    "upgrade batchllm, or restore a backup made before the upgrade."
                )
            if current != script.get_current_head():
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    except DatabaseError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise StartupError(
            f"The database {database} cannot be used ({reason}); check BATCHLLM_DATABASE_URL."
        ) from error
    except OSError as error:
        raise StartupError(
            f"The directory of the database {database} cannot be written to ({error.strerror}); "
            "make it writable or choose another with BATCHLLM_DATABASE_URL or BATCHLLM_DATA_DIR."
        ) from error


def schema_is_current(database: Database) -> bool:
    """Whether exactly the migrations of this code have been applied. DatabaseError if out of reach."""
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return bool(current == ScriptDirectory.from_config(alembic_config()).get_current_head())


@contextmanager
def _migration_connection(database: Database) -> Iterator[Connection]:
    """A write transaction that only one process at a time can have."""
    if database.is_sqlite:
        # Turning a new file to WAL happens outside any transaction, so SQLite's own write lock is not enough.
        with FileLock(f"{database.url.database}.{_LOCK}.lock"), database.connect_for_writing() as connection:
            yield connection
        return
    with database.connect_for_writing() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(lock_key(_LOCK))))
        yield connection


def alembic_config() -> Config:
    """Alembic's configuration, without a file: the scripts are found by importing their package."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
