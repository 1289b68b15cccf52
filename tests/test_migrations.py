"""Every earlier schema comes to the newest one with its data."""

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import migrations
from app.db.files import get_file
from app.db.models import Base
from app.db.schema import alembic_config, migrate
from app.db.session import Database
from tests.app.db.jobs import read_batch

REVISIONS = sorted(path.name[:4] for path in (Path(migrations.__file__).parent / "versions").glob("0*.py"))

_FILE = (
    "INSERT INTO files (id, purpose, filename, bytes, created_at, expires_at, storage_key) "
    "VALUES ('file-1', 'batch', 'in.jsonl', 7, 1, NULL, 'k')"
)
_BATCH = (
    "INSERT INTO batches (id, endpoint, input_file_id, completion_window, status, created_at, expires_at, "
    "total, completed, failed, input_tokens, cached_tokens, output_tokens, epoch) "
    "VALUES ('batch_1', '/v1/completions', 'file-1', '24h', 'in_progress', 1, 2, 3, 2, 1, 0, 0, 0, 4)"
)


def test_the_revisions_are_one_chain() -> None:
    chain = [revision.revision for revision in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    assert chain == REVISIONS[::-1]


@pytest.mark.parametrize("revision", REVISIONS)
def test_migrating_from(empty_database_url: str, revision: str) -> None:
    database = Database(empty_database_url)
    with database.connect_for_writing() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.execute(text(_FILE))
        connection.execute(text(_BATCH))
    migrate(database)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    batch = read_batch(database, "batch_1")
    assert (batch.status, batch.epoch, batch.total, batch.metadata_) == ("in_progress", 4, 3, None)
    with database.read() as session:
        file = get_file(session, "file-1")
        assert file is not None
        assert (file.bytes, file.expires_at) == (7, None)
    database.dispose()
