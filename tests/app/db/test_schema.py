"""Migrations: equal to the models, safe in several processes, all or nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from app.db.models import DEFAULT_OWNER, Base, File, IdempotencyKey
from app.db.schema import alembic_config, migrate, schema_is_current
from app.db.session import Database
from app.settings import StartupError

_MIGRATE = "import sys; from app.db.schema import migrate; from app.db.session import Database\n"
_MIGRATE += "sys.stdin.readline(); migrate(Database(sys.argv[1]))"


@pytest.fixture
def empty_database(empty_database_url: str) -> Database:
    return Database(empty_database_url)


def test_migrations_give_what_the_models_say(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_twice_changes_nothing(empty_database: Database) -> None:
    assert not schema_is_current(empty_database)
    migrate(empty_database)
    assert schema_is_current(empty_database)
    migrate(empty_database)
    assert schema_is_current(empty_database)
    empty_database.dispose()


def test_what_was_there_before_tenants_belongs_to_the_default_one(empty_database: Database) -> None:
    with empty_database.connect_for_writing() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0009")
        columns = "id, purpose, filename, bytes, created_at, storage_key"
        connection.execute(text(f"INSERT INTO files ({columns}) VALUES ('f', 'batch', 'a', 1, 1, 'k')"))
        connection.execute(text("INSERT INTO idempotency_keys VALUES ('k', 'digest', 'f', 2)"))
    migrate(empty_database)
    with empty_database.of(DEFAULT_OWNER).read() as session:
        assert session.get_one(File, "f").owner == DEFAULT_OWNER
        assert session.get_one(IdempotencyKey, (DEFAULT_OWNER, "k")).object_id == "f"
    empty_database.dispose()


def test_processes_that_migrate_at_once(empty_database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MIGRATE, empty_database_url],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:  # all have imported by now, or are about to
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    database = Database(empty_database_url)
    assert schema_is_current(database)
    database.dispose()


def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert not schema_is_current(database)
    with pytest.raises(StartupError, match=r"newer schema \(9999\)"):
        migrate(database)


def test_a_migration_that_fails_leaves_nothing(empty_database: Database) -> None:
    """The second table exists already, so that creating it fails after the first."""
    with empty_database.begin() as session:
        session.execute(text("CREATE TABLE request_lines (id INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        migrate(empty_database)
    assert inspect(empty_database.engine).get_table_names() == ["request_lines"]
    empty_database.dispose()


def test_a_server_out_of_reach_is_one_sentence() -> None:
    database = Database("postgresql://user:secret@127.0.0.1:1/none")
    with pytest.raises(StartupError, match="cannot be used") as caught:
        migrate(database)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("not a database, " * 100)
    with pytest.raises(StartupError) as caught:
        migrate(Database(f"sqlite:///{path}"))
    assert "\n" not in str(caught.value)
