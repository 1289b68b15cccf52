"""Batch rows and the status machine."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.db.batches import (
    NotCancellable,
    batches_to_close,
    batches_to_validate,
    create_batch,
    get_batch,
    list_batches,
    request_cancel,
    transition,
)
from app.db.models import Batch
from app.db.pages import UnknownCursor
from app.db.session import Database, now
from app.lifecycle import CANCELLABLE, TERMINAL, TRANSITIONS, BatchStatus, timestamp_column
from tests.app.db.jobs import CHAT, add_batch, read_batch, set_columns

_S = BatchStatus
_STAMPS = {timestamp_column(status) for status in BatchStatus}


def _stamps(batch: Batch) -> dict[str, int]:
    values = {name: getattr(batch, name) for name in _STAMPS}
    return {name: value for name, value in values.items() if value is not None}


def test_a_created_batch_reads_back(database: Database) -> None:
    with database.begin() as session:
        batch = create_batch(
            session,
            input_file_id="file-1",
            endpoint=CHAT,
            completion_window="2h",
            window_seconds=7_200,
            metadata=None,
        )
        assert abs(batch.created_at - now(session)) <= 1
    with database.read() as session:
        found = get_batch(session, batch.id)
        assert get_batch(session, "batch_unknown") is None
    assert found is not None
    assert found.id.startswith("batch_")
    assert (found.status, found.expires_at) == (_S.VALIDATING, found.created_at + 7_200)
    assert (found.total, found.completed, found.failed, found.epoch) == (0, 0, 0, 0)
    assert (found.metadata_, found.errors, found.lease_owner) == (None, None, None)
    assert _stamps(found) == {"created_at": found.created_at}


def test_lists_are_newest_first_and_paged(database: Database) -> None:
    with database.begin() as session:
        ids = [add_batch(session, "file-1").id for _ in range(3)]
    for age, batch_id in enumerate(reversed(ids)):
        set_columns(database, batch_id, created_at=1_000 - age)
    with database.read() as session:
        first, has_more = list_batches(session, after=None, limit=2)
        assert ([batch.id for batch in first], has_more) == ([ids[2], ids[1]], True)
        second, has_more = list_batches(session, after=ids[1], limit=2)
        assert ([batch.id for batch in second], has_more) == ([ids[0]], False)
        with pytest.raises(UnknownCursor):
            list_batches(session, after="batch_unknown", limit=2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attempts=st.lists(
        st.tuples(st.sampled_from(BatchStatus), st.sampled_from(BatchStatus), st.sampled_from([None, 0, 1])),
        max_size=30,
    )
)
def test_no_attempt_leaves_the_table_of_transitions(
    database: Database, attempts: list[tuple[BatchStatus, BatchStatus, int | None]]
) -> None:
    """Whatever is tried: only steps of the table happen, in the right epoch, and a time once set stays."""
    with database.begin() as session:
        batch_id = add_batch(session, "file-1").id
    path = [_S.VALIDATING]
    stamps = _stamps(read_batch(database, batch_id))
    for old, new, epoch in attempts:
        with database.begin() as session:
            if new not in TRANSITIONS[old]:
                with pytest.raises(ValueError, match="cannot go from"):
                    transition(session, batch_id, old, new, epoch=epoch)
                continue
            moved = transition(session, batch_id, old, new, epoch=epoch)
        assert moved == (old == path[-1] and epoch in (None, 0))
        if moved:
            path.append(new)
        batch = read_batch(database, batch_id)
        assert batch.status == path[-1]
        assert _stamps(batch).items() >= stamps.items()
        stamps = _stamps(batch)
        assert set(stamps) == {timestamp_column(status) for status in path}


def test_a_transition_sets_columns_with_it(database: Database) -> None:
    error = {"code": "empty_file", "message": "m", "param": None, "line": None}
    with database.begin() as session:
        batch_id = add_batch(session, "file-1").id
    with database.begin() as session:
        assert transition(session, batch_id, _S.VALIDATING, _S.FAILED, epoch=0, errors=[error])
        assert not transition(session, "batch_unknown", _S.VALIDATING, _S.FAILED)
    assert read_batch(database, batch_id).errors == [error]


@pytest.mark.parametrize("status", BatchStatus)
def test_cancel_in_each_state(database: Database, status: BatchStatus) -> None:
    with database.begin() as session:
        batch_id = add_batch(session, "file-1").id
    set_columns(database, batch_id, status=status)

    def cancel() -> Batch | None:
        with database.begin() as session:
            return request_cancel(session, batch_id)

    if status in TERMINAL - {_S.CANCELLED}:
        with pytest.raises(NotCancellable, match=f"Cannot cancel a batch with status '{status}'."):
            cancel()
        return
    batch = cancel()
    assert batch is not None
    if status in CANCELLABLE:
        assert batch.status == _S.CANCELLING
        assert batch.cancelling_at is not None
    else:
        assert (batch.status, batch.cancelling_at) == (status, None)


def test_an_unknown_batch_cannot_be_cancelled(database: Database) -> None:
    with database.begin() as session:
        assert request_cancel(session, "batch_unknown") is None


def test_what_is_due(database: Database) -> None:
    def add(**columns: object) -> str:
        with database.begin() as session:
            batch_id = add_batch(session, "file-1").id
        if columns:
            set_columns(database, batch_id, **columns)
        return batch_id

    past, future = 1_000, 10**10
    new = add()
    add(status=_S.IN_PROGRESS)
    add(status=_S.CANCELLING, lease_owner="w", lease_expires_at=future)
    for status in TERMINAL:
        add(status=status, expires_at=past)
    to_close = {
        add(expires_at=past),
        add(status=_S.IN_PROGRESS, expires_at=past, lease_owner="w", lease_expires_at=future),
        add(status=_S.FINALIZING, lease_owner="w", lease_expires_at=future),
        add(status=_S.CANCELLING),
        add(status=_S.CANCELLING, lease_owner="w", lease_expires_at=past),
    }
    with database.read() as session:
        assert {batch.id for batch in batches_to_close(session)} == to_close
        assert [batch.id for batch in batches_to_validate(session)] == [new]
