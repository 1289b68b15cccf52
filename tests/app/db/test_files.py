"""File rows and their pages."""

from collections.abc import Sequence
from typing import Literal

import pytest

from app.db.files import FileInUse, create_file, delete_file, get_file, list_files, named_keys
from app.db.models import File
from app.db.pages import UnknownCursor
from app.db.session import Database, now
from app.lifecycle import TERMINAL, BatchStatus
from tests.app.db.jobs import add_batch, add_file, set_columns

Order = Literal["asc", "desc"]


def _add_files(database: Database, count: int, purpose: str = "batch") -> list[str]:
    with database.begin() as session:
        return [add_file(session, purpose=purpose).id for _ in range(count)]


def _walk(database: Database, order: Order, limit: int, purpose: str | None = None) -> list[str]:
    ids: list[str] = []
    has_more = True
    while has_more:
        rows: Sequence[File]
        with database.read() as session:
            after = ids[-1] if ids else None
            rows, has_more = list_files(session, after=after, limit=limit, order=order, purpose=purpose)
        ids += [row.id for row in rows]
    return ids


def test_a_created_file_reads_back(database: Database) -> None:
    with database.begin() as session:
        file = create_file(
            session, purpose="batch", filename="a.jsonl", num_bytes=3, storage_key="k", expires_seconds=99
        )
        assert abs(file.created_at - now(session)) <= 1
    with database.read() as session:
        found = get_file(session, file.id)
        assert found is not None
        assert (found.filename, found.bytes, found.storage_key) == ("a.jsonl", 3, "k")
        assert found.expires_at == found.created_at + 99
        assert found.id.startswith("file-")
        assert get_file(session, "file-unknown") is None


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_pages_hold_every_file_once(database: Database, order: Order, limit: int) -> None:
    ids = _add_files(database, 7)
    seen = _walk(database, order, limit)
    assert sorted(seen) == sorted(ids)
    with database.read() as session:
        places = [(session.get_one(File, i).created_at, i) for i in seen]
    assert places == sorted(places, reverse=order == "desc")


def test_new_files_do_not_shift_a_cursor(database: Database) -> None:
    old = _add_files(database, 4)
    with database.read() as session:
        first, has_more = list_files(session, after=None, limit=2, order="desc")
    assert has_more
    _add_files(database, 3)
    with database.read() as session:
        second, has_more = list_files(session, after=first[-1].id, limit=2, order="desc")
    assert not has_more
    assert sorted(row.id for row in [*first, *second]) == sorted(old)


def test_pages_filter_by_purpose(database: Database) -> None:
    ids = _add_files(database, 3)
    _add_files(database, 2, purpose="batch_output")
    assert sorted(_walk(database, "asc", 1, purpose="batch")) == sorted(ids)
    assert _walk(database, "asc", 1, purpose="vision") == []


def test_an_unknown_cursor_is_refused(database: Database) -> None:
    with database.read() as session, pytest.raises(UnknownCursor):
        list_files(session, after="file-unknown", limit=2, order="asc")


def test_deleting_returns_the_blob_to_delete(database: Database) -> None:
    with database.begin() as session:
        file = add_file(session, storage_key="blob")
    with database.begin() as session:
        assert named_keys(session, ["blob", "other"]) == {"blob"}
        assert delete_file(session, file.id) == "blob"
    with database.begin() as session:
        assert named_keys(session, ["blob", "other"]) == set()
        assert delete_file(session, file.id) is None


@pytest.mark.parametrize("status", BatchStatus)
def test_an_input_stays_until_its_batch_has_ended(database: Database, status: BatchStatus) -> None:
    with database.begin() as session:
        file = add_file(session)
        batch = add_batch(session, file.id)
    set_columns(database, batch.id, status=status)
    if status in TERMINAL:
        with database.begin() as session:
            assert delete_file(session, file.id) == file.storage_key
    else:
        with pytest.raises(FileInUse), database.begin() as session:
            delete_file(session, file.id)
        with database.read() as session:
            assert get_file(session, file.id) is not None
