"""Keys: their text is never stored, and a session of a tenant knows no other's rows."""

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from app.db.keys import any_keys, create_key, find_tenant, list_keys, revoke_key
from app.db.models import ApiKey, Batch, File
from app.db.session import Database
from tests.app.db.jobs import add_batch, add_file


def owner_of(session: Session, text: str) -> str | None:
    tenant = find_tenant(session, text)
    return None if tenant is None else tenant.owner


def new_key(database: Database, owner: str) -> tuple[str, str]:
    with database.begin() as session:
        key, text_of_key = create_key(session, owner)
        return key.id, text_of_key


def test_a_key_names_its_owner_until_it_is_revoked(database: Database) -> None:
    with database.read() as session:
        assert not any_keys(session)
        assert owner_of(session, "anything") is None
    first_id, first = new_key(database, "alice")
    _, second = new_key(database, "alice")
    _, other = new_key(database, "bob")
    with database.begin() as session:
        assert [owner_of(session, key) for key in (first, second, other)] == ["alice", "alice", "bob"]
        assert revoke_key(session, first_id)
        assert not revoke_key(session, first_id)
        assert not revoke_key(session, "nothing")
    with database.read() as session:
        assert [owner_of(session, key) for key in (first, second, other)] == [None, "alice", "bob"]
        assert [key.owner for key in list_keys(session)].count("alice") == 2
        assert any_keys(session)


def test_what_is_almost_a_key(database: Database) -> None:
    key_id, key = new_key(database, "alice")
    _, other = new_key(database, "alice")
    swapped = f"sk-{key_id}-{other[-43:]}"
    end = "A" if key[-2] != "A" else "B"
    with database.read() as session:
        for wrong in (
            "",
            key_id,
            key[:-1],
            key + "A",
            key + "\n",
            f"{key[:-2]}{end}{key[-1]}",
            swapped,
            "sk-\0",
        ):
            assert owner_of(session, wrong) is None


def test_the_database_does_not_hold_a_key(database: Database) -> None:
    key_id, key = new_key(database, "alice")
    secret = key.removeprefix(f"sk-{key_id}-")
    with database.read() as session:
        row = session.execute(text("SELECT * FROM api_keys")).one()
    assert secret not in str(row)
    assert secret.encode() not in row.secret_sha256
    assert len(row.secret_sha256) == 32


@pytest.fixture
def batch_of_alice(database: Database) -> str:
    with database.of("alice").begin() as session:
        return add_batch(session, add_file(session).id).id


def test_a_tenants_session_knows_no_others_rows(database: Database, batch_of_alice: str) -> None:
    with database.of("bob").begin() as session:
        assert session.get(Batch, batch_of_alice) is None
        assert session.get(Batch, batch_of_alice, with_for_update=True) is None
        assert session.scalars(select(Batch)).all() == []
        assert session.scalars(select(File.storage_key)).all() == []
        assert session.scalar(select(func.count()).select_from(File)) == 0
        assert session.scalar(select(func.sum(File.bytes))) is None
        assert session.execute(select(Batch.id).join(File, File.id == Batch.input_file_id)).all() == []
        changed = session.execute(update(Batch).values(status="failed"))
        assert changed.rowcount == 0  # type: ignore[attr-defined]
        assert session.execute(delete(File)).rowcount == 0  # type: ignore[attr-defined]
    with database.of("alice").read() as session:
        assert session.get_one(Batch, batch_of_alice).status == "validating"
    with database.read() as session:
        assert session.get_one(Batch, batch_of_alice).owner == "alice"


def test_a_tenants_session_makes_only_its_own_rows(database: Database) -> None:
    with database.of("bob").begin() as session:
        row = add_file(session)
        row.owner = "alice"
        session.add(
            File(
                id="file-x",
                owner="alice",
                purpose="batch",
                filename="",
                bytes=0,
                created_at=0,
                storage_key="k",
            )
        )
    with database.read() as session:
        assert session.get_one(File, "file-x").owner == "bob"
        assert session.scalars(select(ApiKey)).all() == []
