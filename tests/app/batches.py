"""Batches with a real input blob, as the keeper leaves them for the worker."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import orjson
from sqlalchemy import select

from app.batch_input import InputLimits, InputLine, read_lines
from app.db.batches import create_batch, transition
from app.db.files import create_file
from app.db.lines import add_request_lines
from app.db.models import Batch, LineResult, RequestLine
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.storage import Storage

CHAT = "/v1/chat/completions"
LIMITS = InputLimits(max_line_bytes=1_000_000, max_requests=100_000)


def chat(text: str, **parameters: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 5} | parameters


def input_file(bodies: Sequence[dict[str, Any]], endpoint: str = CHAT) -> bytes:
    """A batch file; custom ids r0, r1, ..."""
    lines = (
        {"custom_id": f"r{i}", "method": "POST", "url": endpoint, "body": body}
        for i, body in enumerate(bodies)
    )
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def batch_to_run(
    database: Database, storage: Storage, bodies: Sequence[dict[str, Any]], endpoint: str = CHAT
) -> str:
    """Id of a batch in status `in_progress` with one line a body."""
    content = input_file(bodies, endpoint)
    with storage.create() as blob:
        blob.write(content)
        key = blob.commit()
    lines = list(read_lines(BytesIO(content), endpoint=endpoint, served_models=["m"], limits=LIMITS))
    valid = [line for line in lines if isinstance(line, InputLine)]
    assert len(valid) == len(lines), lines
    with database.begin() as session:
        file = create_file(
            session,
            purpose="batch",
            filename="in.jsonl",
            num_bytes=len(content),
            storage_key=key,
            expires_seconds=None,
        )
        batch = create_batch(
            session,
            input_file_id=file.id,
            endpoint=endpoint,
            completion_window="24h",
            window_seconds=86_400,
            metadata=None,
        )
        add_request_lines(session, batch.id, valid)
        validating, running = BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS
        transition(session, batch.id, validating, running, total=len(valid), model="m")
    return batch.id


def results_of(database: Database, batch_id: str) -> dict[str, dict[str, Any]]:
    """Payloads by custom id; fails if a line has two."""
    with database.read() as session:
        query = select(RequestLine.custom_id, LineResult.payload).join(
            LineResult, LineResult.request_line_id == RequestLine.id
        )
        rows = session.execute(query.where(RequestLine.batch_id == batch_id)).all()
    results = {custom_id: orjson.loads(payload) for custom_id, payload in rows}
    assert len(results) == len(rows)
    assert all(payload["custom_id"] == custom_id for custom_id, payload in results.items())
    return results


def lines_of(database: Database, batch_id: str) -> list[RequestLine]:
    with database.read() as session:
        query = select(RequestLine).where(RequestLine.batch_id == batch_id).order_by(RequestLine.id)
        return list(session.scalars(query))


def read_batch(database: Database, batch_id: str) -> Batch:
    with database.read() as session:
        return session.get_one(Batch, batch_id)
