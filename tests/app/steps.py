"""Steps of a batch's life, taken by hand."""

from collections.abc import Sequence

import orjson

from app.db.batches import request_cancel, transition
from app.db.files import create_file, get_file, list_files
from app.db.leases import Claim, claim_batch, release
from app.db.lines import NewResult, pending_lines, record_results
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.storage import Storage
from tests.app.db.jobs import CHAT, add_batch

_S = BatchStatus


def request(custom_id: str, **changes: object) -> bytes:
    """One line of an input file."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | changes)


def upload(database: Database, storage: Storage, data: bytes, purpose: str = "batch") -> str:
    """Id of a stored file."""
    with storage.create() as writer:
        writer.write(data)
        key = writer.commit()
    with database.begin() as session:
        file = create_file(
            session,
            purpose=purpose,
            filename="in",
            num_bytes=len(data),
            storage_key=key,
            expires_seconds=None,
        )
    return file.id


def submit(database: Database, storage: Storage, lines: Sequence[bytes]) -> str:
    """Id of a new batch over `lines`."""
    file_id = upload(database, storage, b"\n".join(lines))
    with database.begin() as session:
        return add_batch(session, file_id).id


def submit_good(database: Database, storage: Storage, count: int) -> str:
    """Id of a new batch of `count` good lines, r1, r2, ..."""
    return submit(database, storage, [request(f"r{n}") for n in range(1, count + 1)])


def claim_one(database: Database) -> Claim:
    """A claim on the oldest batch that can be had."""
    with database.begin() as session:
        claim = claim_batch(session, worker_id="w", lease_seconds=1_000, takeover=False)
    assert claim is not None
    return claim


def answer(database: Database, claim: Claim, ok: dict[str, bool]) -> None:
    """Record a result for each custom_id named: True for the output file, False for the error file."""
    with database.begin() as session:
        results = [
            NewResult(line.id, ok[line.custom_id], 1, orjson.dumps({"custom_id": line.custom_id}), 1, 0, 1)
            for line in pending_lines(session, claim.batch_id)
            if line.custom_id in ok
        ]
        record_results(session, claim, results)


def finish(database: Database, claim: Claim) -> None:
    """What the worker does when no line is left."""
    with database.begin() as session:
        assert transition(session, claim.batch_id, _S.IN_PROGRESS, _S.FINALIZING, epoch=claim.epoch)
        release(session, claim)


def cancel(database: Database, batch_id: str) -> None:
    """What the api does on a cancel."""
    with database.begin() as session:
        request_cancel(session, batch_id)


def lines_of(database: Database, storage: Storage, file_id: str | None) -> list[dict[str, object]] | None:
    """A file's lines, parsed, or None if there is no file."""
    if file_id is None:
        return None
    with database.read() as session:
        file = get_file(session, file_id)
    assert file is not None
    with storage.open(file.storage_key) as blob:
        data = blob.read()
    assert len(data) == file.bytes
    assert data.endswith(b"\n")
    return [orjson.loads(line) for line in data.splitlines()]


def custom_ids(database: Database, storage: Storage, file_id: str | None) -> list[object] | None:
    """The custom ids of a file's lines, or None if there is no file."""
    lines = lines_of(database, storage, file_id)
    return None if lines is None else [line["custom_id"] for line in lines]


def files_and_blobs(database: Database, storage: Storage) -> tuple[int, int]:
    """How many File rows and how many stored blobs there are."""
    with database.read() as session:
        files, _ = list_files(session, after=None, limit=1_000, order="asc")
    return len(files), len(list(storage.list_blobs()))
