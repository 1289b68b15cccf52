"""Lines, attempts, results and their counts."""

import pytest
from sqlalchemy import select

from app.batch_input import InputLine
from app.db import lines as lines_module
from app.db.leases import Claim, LeaseLost, claim_batch, fence
from app.db.lines import (
    DuplicateResult,
    NewResult,
    add_request_lines,
    delete_request_lines,
    forgive,
    iter_results,
    iter_unfinished,
    pending_lines,
    record_attempts,
    record_results,
    undo_attempts,
)
from app.db.models import RequestLine
from app.db.session import Database
from app.lifecycle import BatchStatus
from tests.app.db.jobs import read_batch, set_columns, start_batch


def _claim(database: Database) -> Claim:
    with database.begin() as session:
        claim = claim_batch(session, worker_id="w", lease_seconds=30, takeover=False)
    assert claim is not None
    return claim


def _result(line_id: int, ok: bool = True, payload: bytes = b"{}") -> NewResult:
    return NewResult(line_id, ok, 1, payload, input_tokens=5, cached_tokens=3, output_tokens=2)


def _counts(database: Database, batch_id: str) -> tuple[int, ...]:
    batch = read_batch(database, batch_id)
    return batch.completed, batch.failed, batch.input_tokens, batch.cached_tokens, batch.output_tokens


def test_lines_are_pending_in_file_order(database: Database) -> None:
    batch_id = start_batch(database, 3)
    start_batch(database, 2)
    with database.read() as session:
        pending = pending_lines(session, batch_id)
        assert list(iter_unfinished(session, batch_id)) == pending
    assert [line[1:] for line in pending] == [(1, "r1", 10, 9, 0), (2, "r2", 20, 9, 0), (3, "r3", 30, 9, 0)]
    assert [line.id for line in pending] == sorted(line.id for line in pending)


def test_deleted_lines_are_gone(database: Database) -> None:
    batch_id, other = start_batch(database, 3), start_batch(database, 2)
    with database.begin() as session:
        delete_request_lines(session, batch_id)
    with database.read() as session:
        assert pending_lines(session, batch_id) == []
        assert len(pending_lines(session, other)) == 2


def test_attempts_are_counted(database: Database) -> None:
    batch_id = start_batch(database, 3)
    claim = _claim(database)

    def attempts() -> list[int]:
        with database.read() as session:
            return [line.attempts for line in pending_lines(session, batch_id)]

    for chosen in [slice(2), slice(1, 3), slice(0)]:
        with database.read() as session:
            lines = pending_lines(session, batch_id)[chosen]
        with database.begin() as session:
            record_attempts(session, claim, lines)
            record_attempts(session, claim, lines)  # again, after an outage that hid the commit
    assert attempts() == [1, 2, 1]
    with database.begin() as session:
        undo_attempts(session, claim, lines)
        undo_attempts(session, claim, pending_lines(session, batch_id)[:0])
    assert attempts() == [1, 2, 1]
    with database.read() as session:
        before = pending_lines(session, batch_id)
    with database.begin() as session:
        record_attempts(session, claim, before)
    assert attempts() == [2, 3, 2]
    with database.begin() as session:
        undo_attempts(session, claim, before)
    assert attempts() == [1, 2, 1]


def test_forgiving_spares_lines_that_are_done(database: Database) -> None:
    batch_id = start_batch(database, 3)
    claim = _claim(database)
    set_columns(database, batch_id, deaths=4)
    with database.begin() as session:
        lines = pending_lines(session, batch_id)
        record_attempts(session, claim, lines)
        record_results(session, claim, [_result(lines[0].id)])
        forgive(session, claim, most_deaths=2)
    with database.read() as session:
        attempts = session.scalars(select(RequestLine.attempts).order_by(RequestLine.id))
        assert list(attempts) == [1, 0, 0]
    assert read_batch(database, batch_id).deaths == 0


def test_results_come_with_their_counts(database: Database) -> None:
    batch_id = start_batch(database, 4)
    claim = _claim(database)
    with database.read() as session:
        ids = [line.id for line in pending_lines(session, batch_id)]
    with database.begin() as session:
        record_results(session, claim, [_result(ids[2], payload=b"\xff c"), _result(ids[0], payload=b"a")])
    with database.begin() as session:
        record_results(session, claim, [_result(ids[3], ok=False, payload=b"d")])
        record_results(session, claim, [])
    assert _counts(database, batch_id) == (2, 1, 15, 9, 6)
    with database.read() as session:
        assert [line.custom_id for line in pending_lines(session, batch_id)] == ["r2"]
        assert list(iter_results(session, batch_id, ok=True)) == [(ids[0], b"a"), (ids[2], b"\xff c")]
        assert list(iter_results(session, batch_id, ok=False)) == [(ids[3], b"d")]


def test_a_second_result_for_a_line_is_refused(database: Database) -> None:
    batch_id = start_batch(database, 2)
    claim = _claim(database)
    with database.read() as session:
        first, second = (line.id for line in pending_lines(session, batch_id))

    def record(*results: NewResult) -> None:
        with database.begin() as session:
            record_results(session, claim, results)

    record(_result(first, payload=b"kept"))
    with pytest.raises(DuplicateResult):
        record(_result(second), _result(first, payload=b"late"))
    assert _counts(database, batch_id)[:2] == (1, 0)
    with database.read() as session:
        assert [result.payload for result in iter_results(session, batch_id, ok=True)] == [b"kept"]
        assert [line.id for line in pending_lines(session, batch_id)] == [second]


def test_nothing_is_written_in_an_old_epoch(database: Database) -> None:
    batch_id = start_batch(database, 1)
    claim = _claim(database)
    with database.begin() as session:
        assert fence(session, batch_id, status=BatchStatus.IN_PROGRESS, epoch=claim.epoch) == claim.epoch + 1
        (line,) = pending_lines(session, batch_id)
    with pytest.raises(LeaseLost), database.begin() as session:
        record_results(session, claim, [_result(line.id)])
    with pytest.raises(LeaseLost), database.begin() as session:
        record_attempts(session, claim, [line])
    assert _counts(database, batch_id) == (0, 0, 0, 0, 0)
    with database.read() as session:
        assert pending_lines(session, batch_id)[0].attempts == 0


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_rows_are_streamed_in_chunks(database: Database, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk borders lose and repeat nothing."""
    monkeypatch.setattr(lines_module, "_READ_CHUNK", 3)
    batch_id = start_batch(database, count)
    claim = _claim(database)
    with database.read() as session:
        lines = list(iter_unfinished(session, batch_id))
    assert [line.line for line in lines] == list(range(1, count + 1))
    with database.begin() as session:
        record_results(session, claim, [_result(line.id) for line in lines])
    with database.read() as session:
        assert [r.request_line_id for r in iter_results(session, batch_id, ok=True)] == [x.id for x in lines]


def test_lines_keep_any_custom_id(database: Database) -> None:
    names = ["ü", "😀", "'; --", "%s", "a" * 512]
    batch_id = start_batch(database, 0)
    with database.begin() as session:
        add_request_lines(session, batch_id, [InputLine(1, name, 0, 1, "m") for name in names])
    with database.read() as session:
        assert list(session.scalars(select(RequestLine.custom_id).order_by(RequestLine.id))) == names
