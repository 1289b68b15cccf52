"""`batchllm keys`, as commands on one database."""

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db.keys import find_tenant
from app.db.session import Database
from app.main import check_keys
from app.settings import Settings, StartupError
from app.tenants.keys import create, revoke, show
from tests.app.test_cli import batchllm, check_refusal


def owner_of(session: Session, text: str) -> str | None:
    tenant = find_tenant(session, text)
    return None if tenant is None else tenant.owner


def test_a_key_is_made_listed_and_revoked(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(database_url=url)
    create(settings, "alice")
    printed = capsys.readouterr()
    key = printed.out.strip()
    with database.read() as session:
        assert owner_of(session, key) == "alice"
    assert key not in printed.err
    show(settings)
    listed = capsys.readouterr().out
    key_id = listed.split()[0]
    assert key_id in key
    assert "alice" in listed
    assert "revoked" not in listed
    assert key[-43:] not in listed
    revoke(settings, key_id)
    show(settings)
    assert "revoked" in capsys.readouterr().out
    with database.read() as session:
        assert owner_of(session, key) is None
    with pytest.raises(StartupError, match="keys list"):
        revoke(settings, key_id)


@pytest.mark.parametrize("name", ["", "a b", "../x", "größe", "a" * 65, "a\n"])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartupError, match="cannot name a tenant"):
        create(Settings(data_dir=tmp_path), name)


def test_listening_beyond_loopback_needs_a_key(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    remote = Settings(database_url=url, host="0.0.0.0", allow_remote=True)
    check_keys(remote.model_copy(update={"host": "127.0.0.1"}), database)
    with pytest.raises(StartupError, match="batchllm keys create"):
        check_keys(remote, database)
    create(remote, "alice")
    check_keys(remote, database)


def test_before_the_first_migration_there_is_no_key(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    with pytest.raises(StartupError, match="batchllm keys create"):
        check_keys(Settings(host="0.0.0.0", allow_remote=True), database)
    database.dispose()


def test_a_database_that_is_away_keeps_nobody_from_starting() -> None:
    """Requests are refused until it is back."""
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(OperationalError), database.read() as session:
        owner_of(session, f"sk-{'0' * 16}-{'0' * 43}")
    check_keys(Settings(host="0.0.0.0", allow_remote=True), database)


def test_as_a_process(tmp_path: Path) -> None:
    environment = {"BATCHLLM_DATA_DIR": str(tmp_path), "BATCHLLM_ALLOW_REMOTE": "1", "BATCHLLM_PORT": "0"}
    check_refusal(batchllm("api", "--host", "0.0.0.0", **environment), "batchllm keys create NAME")
    made = batchllm("keys", "create", "alice", **environment)
    assert made.returncode == 0
    key = made.stdout.strip()
    assert key.startswith("sk-")
    assert key not in made.stderr
    for file in tmp_path.iterdir():
        assert key[-43:].encode() not in file.read_bytes()
