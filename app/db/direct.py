"""Direct requests: someone waits for the answer. Each is a batch of one line, which no list shows.

It has its line from the start and goes before all others. Whoever made it deletes it, answered or not; a
worker that runs it notices at its next heartbeat.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.batch_input import InputLine
from app.db.batches import changed_rows
from app.db.ids import new_id
from app.db.lines import add_request_lines
from app.db.models import Batch, File, LineResult
from app.db.session import now, unix_now
from app.lifecycle import BatchStatus

DIRECT_PRIORITY = 101  # above what a client may give a batch


def add_direct(
    session: Session,
    batch_id: str,
    *,
    owner: str,
    endpoint: str,
    line: InputLine,
    storage_key: str,
    num_bytes: int,
    seconds: int,
) -> None:
    """A request for the workers. line: the one in the blob `storage_key`. seconds: how long it may take."""
    created_at = now(session)
    file = File(
        id=new_id("file-"),
        owner=owner,
        is_direct=True,
        purpose="batch",
        filename="direct.jsonl",
        bytes=num_bytes,
        created_at=created_at,
        storage_key=storage_key,
    )
    batch = Batch(
        id=batch_id,
        owner=owner,
        is_direct=True,
        endpoint=endpoint,
        input_file_id=file.id,
        completion_window=f"{seconds}s",
        model=line.model,
        models=[line.model],
        priority=DIRECT_PRIORITY,
        status=BatchStatus.IN_PROGRESS,
        created_at=created_at,
        in_progress_at=created_at,
        expires_at=created_at + seconds,
        total=1,
    )
    session.add_all([file, batch])
    session.flush()
    add_request_lines(session, batch_id, [line])


def waiting_models(session: Session) -> Sequence[list[str]]:
    """Of each direct request that no worker has taken yet, what it names."""
    waits = (
        Batch.is_direct,
        Batch.status == BatchStatus.IN_PROGRESS,
        Batch.lease_owner.is_(None),
        Batch.expires_at > unix_now(),
    )
    return [models or [] for models in session.scalars(select(Batch.models).where(*waits))]


def direct_payloads(session: Session, batch_ids: Collection[str]) -> dict[str, bytes]:
    """The answers that there are, by batch: lines of an output or error file."""
    query = select(LineResult.batch_id, LineResult.payload).where(LineResult.batch_id.in_(batch_ids))
    return {row.batch_id: row.payload for row in session.execute(query)}


def delete_direct(session: Session, batch_id: str) -> str | None:
    """Forget the request; the key of the blob to delete once this is committed, None if there is none."""
    file_id = session.scalar(select(Batch.input_file_id).where(Batch.id == batch_id, Batch.is_direct))
    changed_rows(session, delete(Batch).where(Batch.id == batch_id, Batch.is_direct))
    return session.scalar(delete(File).where(File.id == file_id).returning(File.storage_key))


def overdue_direct(session: Session, limit: int) -> Sequence[str]:
    """Ids of up to `limit` direct requests that nobody can be waiting for any more."""
    query = select(Batch.id).where(Batch.is_direct, Batch.expires_at <= unix_now())
    return session.scalars(query.limit(limit)).all()
