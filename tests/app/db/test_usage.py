"""Usage of tenants: exact under several workers, by day and model."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import update

from app.db.models import Usage
from app.db.session import Database
from app.db.usage import add_usage, date_of, usage_of
from tests.app.db.jobs import set_columns, start_batch

_CHUNKS = 20


def _amounts(database: Database, days: int = 1, owner: str | None = None) -> list[tuple[object, ...]]:
    with database.read() as session:
        return [
            (row.owner, row.model, row.requests, row.output_tokens) for row in usage_of(session, days, owner)
        ]


def test_chunks_of_several_batches_add_up(database: Database) -> None:
    batches = [start_batch(database, 1) for _ in range(3)]
    set_columns(database, batches[1], owner="alice")
    set_columns(database, batches[2], model=None)

    def record(batch_id: str) -> None:
        for _ in range(_CHUNKS):
            with database.begin() as session:
                add_usage(session, batch_id, requests=2, input_tokens=3, cached_tokens=1, output_tokens=2**31)

    with ThreadPoolExecutor() as pool:
        list(pool.map(record, [*batches, batches[0]]))
    assert _amounts(database) == [
        ("alice", "m", 2 * _CHUNKS, 2**31 * _CHUNKS),
        ("default", "", 2 * _CHUNKS, 2**31 * _CHUNKS),
        ("default", "m", 4 * _CHUNKS, 2**31 * 2 * _CHUNKS),
    ]
    assert _amounts(database, owner="bob") == []


def test_days_back(database: Database) -> None:
    batch_id = start_batch(database, 1)
    for _ in range(2):
        with database.begin() as session:
            session.execute(update(Usage).values(day=Usage.day - 3))
            add_usage(session, batch_id, requests=1, input_tokens=1, cached_tokens=0, output_tokens=1)
    assert len(_amounts(database, days=3)) == 1
    assert len(_amounts(database, days=4)) == 2
    with database.read() as session:
        newest, oldest = map(date_of, usage_of(session, 4))
    assert newest > oldest > "2020"
