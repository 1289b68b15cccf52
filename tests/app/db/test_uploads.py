"""Uploads and their parts in the database: what ends them, and what is left to delete."""

from sqlalchemy import func, select, update

from app.db.files import named_keys
from app.db.models import Upload, UploadPart
from app.db.session import Database
from app.db.uploads import (
    UploadStatus,
    add_part,
    cancel_upload,
    create_upload,
    expire_uploads,
    forget_uploads,
    pending_upload,
)


def begin(database: Database, *keys: str) -> str:
    """Id of a pending upload with a part for each storage key."""
    with database.begin() as session:
        upload = create_upload(
            session,
            purpose="batch",
            filename="in.jsonl",
            num_bytes=100,
            expires_seconds=3_600,
            file_expires_seconds=None,
        )
        for key in keys:
            add_part(session, upload, num_bytes=7, storage_key=key, spare_bytes=0)
    return upload.id


def status_of(database: Database, upload_id: str) -> str:
    with database.read() as session:
        return session.get_one(Upload, upload_id).status


def age(database: Database, upload_id: str, seconds: int) -> None:
    with database.begin() as session:
        older = {"expires_at": Upload.expires_at - seconds}
        session.execute(update(Upload).where(Upload.id == upload_id).values(older))


def num_parts(database: Database) -> int:
    with database.read() as session:
        return session.scalars(select(func.count()).select_from(UploadPart)).one()


def test_parts_name_their_blobs(database: Database) -> None:
    begin(database, "a", "b")
    with database.read() as session:
        assert named_keys(session, ["a", "b", "c"]) == {"a", "b"}


def test_only_what_is_late_expires(database: Database) -> None:
    late, in_time, cancelled = begin(database, "a", "b"), begin(database, "c"), begin(database, "d")
    age(database, late, 3_600)
    age(database, cancelled, 3_600)
    with database.begin() as session:
        assert cancel_upload(session, session.get_one(Upload, cancelled)) == ["d"]
    with database.begin() as session:
        num_uploads, keys = expire_uploads(session, limit=10)
        assert (num_uploads, sorted(keys)) == (1, ["a", "b"])
    with database.begin() as session:
        assert expire_uploads(session, limit=10) == (0, [])
    assert status_of(database, late) == UploadStatus.EXPIRED
    assert status_of(database, in_time) == UploadStatus.PENDING
    assert status_of(database, cancelled) == UploadStatus.CANCELLED
    assert num_parts(database) == 1


def test_old_rows_are_forgotten_once_they_ended(database: Database) -> None:
    old, young = begin(database, "a"), begin(database)
    age(database, old, 3_600 + 100)
    with database.begin() as session:
        assert forget_uploads(session, seconds=100) == 0
        expire_uploads(session, limit=10)
        assert forget_uploads(session, seconds=1_000) == 0
        assert forget_uploads(session, seconds=100) == 1
        assert pending_upload(session, old) is None
        assert pending_upload(session, young) is not None
