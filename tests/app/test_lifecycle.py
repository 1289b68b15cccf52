"""The table of a batch's life."""

from app.db.models import Batch
from app.lifecycle import CANCELLABLE, TERMINAL, TRANSITIONS, BatchStatus, timestamp_column


def test_every_status_has_its_row_and_terminal_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(BatchStatus)
    assert {status for status, following in TRANSITIONS.items() if not following} == TERMINAL


def test_every_status_is_reached_and_ends() -> None:
    def reachable(status: BatchStatus) -> set[BatchStatus]:
        return {status}.union(*(reachable(following) for following in TRANSITIONS[status]))

    assert reachable(BatchStatus.VALIDATING) == set(BatchStatus)
    assert all(reachable(status) & TERMINAL for status in BatchStatus)


def test_no_status_comes_twice() -> None:
    """So each timestamp is set once; a cycle would recurse for ever."""

    def paths(status: BatchStatus, before: tuple[BatchStatus, ...]) -> None:
        assert status not in before
        for following in TRANSITIONS[status]:
            paths(following, (*before, status))

    paths(BatchStatus.VALIDATING, ())


def test_what_can_be_cancelled() -> None:
    assert {"validating", "in_progress", "finalizing"} == CANCELLABLE


def test_each_timestamp_is_a_column_of_its_own() -> None:
    columns = [timestamp_column(status) for status in BatchStatus]
    assert len(set(columns)) == len(columns)
    assert set(columns) <= set(Batch.__table__.columns.keys())
