"""Rows that tests of the database and of the keeper start from."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.batch_input import InputLine
from app.db.batches import create_batch, transition
from app.db.files import create_file
from app.db.ids import new_id
from app.db.lines import add_request_lines
from app.db.models import Batch, File
from app.db.session import Database
from app.lifecycle import BatchStatus

CHAT = "/v1/chat/completions"


def add_file(session: Session, *, purpose: str = "batch", storage_key: str | None = None) -> File:
    """A File row; its blob need not exist."""
    return create_file(
        session,
        purpose=purpose,
        filename="in.jsonl",
        num_bytes=7,
        storage_key=storage_key or new_id(""),
        expires_seconds=None,
    )


def add_batch(session: Session, input_file_id: str) -> Batch:
    """A batch in status `validating`."""
    return create_batch(
        session,
        input_file_id=input_file_id,
        endpoint=CHAT,
        completion_window="24h",
        window_seconds=86_400,
        metadata={"team": "a"},
    )


def start_batch(database: Database, num_lines: int) -> str:
    """Id of a batch that is `in_progress` with `num_lines` lines, custom ids r1, r2, ..."""
    with database.begin() as session:
        batch = add_batch(session, add_file(session).id)
        lines = [InputLine(n, f"r{n}", 10 * n, 9, "m") for n in range(1, num_lines + 1)]
        if lines:
            add_request_lines(session, batch.id, lines)
        transition(
            session, batch.id, BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, total=num_lines, model="m"
        )
    return batch.id


def read_batch(database: Database, batch_id: str) -> Batch:
    """The batch as it is now."""
    with database.read() as session:
        return session.get_one(Batch, batch_id)


def set_columns(database: Database, batch_id: str, **columns: object) -> None:
    """Write columns past all rules, such as a time in the past."""
    with database.begin() as session:
        session.execute(update(Batch).where(Batch.id == batch_id).values(columns))
