"""/v1/batches/{id}/results: what a batch has so far, straight from the database."""

from collections.abc import Iterator
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from app.api.batches import found
from app.api.deps import Service, ServiceDep, may_be_id
from app.db import batches, outcomes
from app.lifecycle import TERMINAL

router = APIRouter(prefix="/v1/batches")

LINES_PER_CHUNK = 100
MEDIA_TYPE = "application/jsonl"

_MAX_LINE = 2**31 - 1
_DESCRIPTION = {
    "description": "A line of JSON for each request; with `X-Incomplete: true`, more may come.",
    "headers": {"X-Incomplete": {"schema": {"type": "string", "enum": ["true", "false"]}}},
    "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
}


@router.get("/{batch_id}/results", response_class=StreamingResponse, responses={200: _DESCRIPTION})
def stream_results(
    service: ServiceDep,
    batch_id: str,
    format: Literal["jsonl"] = "jsonl",
    status: Literal["completed", "failed", "pending"] | None = None,
    after_line: Annotated[int, Query(ge=0, le=_MAX_LINE)] = 0,
) -> StreamingResponse:
    """Finished lines as the output and error files have them, in the order of the input, behind a line of it.

    A `pending` line, or one that a cancelled or expired batch never ran, has neither response nor error.
    """
    with service.database.read() as session:
        batch = found(batches.get_batch(session, batch_id) if may_be_id(batch_id) else None, batch_id)
        # Read before the results: with "false", all there will ever be is in the answer.
        incomplete = batch.status not in TERMINAL
        last_id = outcomes.id_of_line(session, batch_id, after_line)
    headers = {"x-incomplete": "true" if incomplete else "false"}
    return StreamingResponse(
        _stream(service, batch_id, last_id, status), headers=headers, media_type=MEDIA_TYPE
    )


def _stream(
    service: Service, batch_id: str, last_id: int, status: outcomes.OutcomeStatus | None
) -> Iterator[bytes]:
    """A transaction a chunk: a slow reader holds none open."""
    while True:
        with service.database.read() as session:
            chunk = outcomes.outcomes_after(session, batch_id, last_id, status=status, limit=LINES_PER_CHUNK)
        if not chunk:
            return
        last_id = chunk[-1].request_line_id
        yield b"".join(_line(outcome) + b"\n" for outcome in chunk)


def _line(outcome: outcomes.Outcome) -> bytes:
    if outcome.payload is not None:
        return outcome.payload
    return orjson.dumps({"id": None, "custom_id": outcome.custom_id, "response": None, "error": None})
