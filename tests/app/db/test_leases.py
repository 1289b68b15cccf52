"""Claims, leases and the epoch that shuts out who has lost one."""

import threading

import pytest

from app.db.leases import Claim, LeaseLost, claim_batch, fence, locked_status, release, renew_lease
from app.db.session import Database
from app.lifecycle import BatchStatus
from tests.app.db.jobs import read_batch, set_columns, start_batch

_S = BatchStatus


def _claim(database: Database, worker_id: str = "w1", *, takeover: bool = False) -> Claim | None:
    with database.begin() as session:
        return claim_batch(session, worker_id=worker_id, lease_seconds=30, takeover=takeover)


def test_the_oldest_batch_is_claimed_once(database: Database) -> None:
    ids = [start_batch(database, 1) for _ in range(2)]
    for batch_id, created_at in zip(ids, [2_000, 1_000], strict=True):
        set_columns(database, batch_id, created_at=created_at)
    claims = [_claim(database), _claim(database, "w2"), _claim(database, "w3")]
    assert [claim and claim.batch_id for claim in claims] == [ids[1], ids[0], None]
    first = claims[0]
    assert first is not None
    batch = read_batch(database, first.batch_id)
    assert (batch.epoch, batch.lease_owner) == (1, "w1")
    assert batch.lease_expires_at is not None
    assert first == Claim(batch.id, 1, "w1", batch.owner, batch.endpoint, first.storage_key, 0, 0, 0, 0)


@pytest.mark.parametrize("status", [status for status in BatchStatus if status is not _S.IN_PROGRESS])
def test_only_batches_in_progress_are_claimed(database: Database, status: BatchStatus) -> None:
    set_columns(database, start_batch(database, 1), status=status)
    assert _claim(database, takeover=True) is None


def test_an_expired_batch_is_not_claimed(database: Database) -> None:
    set_columns(database, start_batch(database, 1), expires_at=1_000)
    assert _claim(database, takeover=True) is None


def test_a_lapsed_lease_is_taken_over_in_a_new_epoch(database: Database) -> None:
    batch_id = start_batch(database, 1)
    first = _claim(database)
    assert first is not None
    set_columns(database, batch_id, lease_expires_at=1_000)
    second = _claim(database, "w2")
    assert second is not None
    assert (second.batch_id, second.epoch) == (batch_id, 2)
    with database.begin() as session:
        assert renew_lease(session, first, 30) is None
        release(session, first)
    assert read_batch(database, batch_id).lease_owner == "w2"


def test_deaths_are_claims_that_nobody_gave_back(database: Database) -> None:
    batch_id = start_batch(database, 1)
    for worker_id, deaths in [("w1", 0), ("w2", 1), ("w3", 2)]:
        claim = _claim(database, worker_id, takeover=True)
        assert claim is not None
        assert claim.deaths == deaths
    with database.begin() as session:
        release(session, claim)
    claim = _claim(database, "w4")
    assert claim is not None
    assert claim.deaths == 2
    with database.begin() as session:
        release(session, claim, died=True)
    assert read_batch(database, batch_id).deaths == 3


def test_takeover_ignores_the_leases_of_others_only(database: Database) -> None:
    start_batch(database, 1)
    assert _claim(database) is not None
    assert _claim(database, takeover=True) is None
    assert _claim(database, "w2") is None
    taken = _claim(database, "w2", takeover=True)
    assert taken is not None
    assert taken.epoch == 2


def test_renewing_tells_of_a_cancel(database: Database) -> None:
    batch_id = start_batch(database, 1)
    claim = _claim(database)
    assert claim is not None
    set_columns(database, batch_id, lease_expires_at=1_000)
    with database.begin() as session:
        assert renew_lease(session, claim, 30) == (_S.IN_PROGRESS, False)
    assert (read_batch(database, batch_id).lease_expires_at or 0) > 1_000
    set_columns(database, batch_id, status=_S.CANCELLING, paused_at=1)
    with database.begin() as session:
        assert renew_lease(session, claim, 30) == (_S.CANCELLING, True)


def test_a_released_batch_is_free_at_once(database: Database) -> None:
    start_batch(database, 1)
    claim = _claim(database)
    assert claim is not None
    with database.begin() as session:
        release(session, claim)
    again = _claim(database, "w2")
    assert again is not None
    assert again.epoch == 2


def test_fencing_needs_the_status_and_the_epoch_that_were_seen(database: Database) -> None:
    batch_id = start_batch(database, 1)
    claim = _claim(database)
    assert claim is not None
    with database.begin() as session:
        assert fence(session, batch_id, status=_S.IN_PROGRESS, epoch=0) is None
        assert fence(session, batch_id, status=_S.CANCELLING, epoch=1) is None
        assert fence(session, batch_id, status=_S.IN_PROGRESS, epoch=1) == 2
        assert locked_status(session, batch_id, 2) is _S.IN_PROGRESS
        with pytest.raises(LeaseLost):
            locked_status(session, batch_id, 1)
        assert renew_lease(session, claim, 30) is None
    assert read_batch(database, batch_id).lease_owner is None


def test_many_claimers_share_the_batches(database: Database) -> None:
    """Each batch goes to one of them, and none is left over."""
    ids = {start_batch(database, 1) for _ in range(12)}
    claimed: list[str] = []
    start = threading.Barrier(4)

    def work(worker_id: str) -> None:
        start.wait()
        while claim := _claim(database, worker_id):
            claimed.append(claim.batch_id)

    workers = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # A claimer passes over rows that another has locked, so it may stop early; the others go on.
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == ids
