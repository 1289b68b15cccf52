"""Who may write to a batch: the holder of its current epoch. The lease says how long others wait for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import and_, null, or_, select, update
from sqlalchemy.orm import Session

from app.db.batches import changed_rows
from app.db.models import Batch, File
from app.db.session import unix_now
from app.lifecycle import BatchStatus


class LeaseLost(Exception):
    """The epoch has moved on: another has taken the batch over, or the keeper has closed it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to run a batch, good while `epoch` is the batch's.

    owner: the tenant whose batch it is. storage_key: of its input.
    deaths: how many workers died while they held the batch.
    input_tokens, output_tokens: of the lines that were answered before.
    is_direct: someone waits for the answer to its one line.
    """

    batch_id: str
    epoch: int
    worker_id: str
    owner: str
    endpoint: str
    storage_key: str
    deaths: int
    priority: int
    input_tokens: int
    output_tokens: int
    is_direct: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which batches a worker can take now.

    models: names that it serves; None: any.
    above: of these tenants only batches of a higher priority than this.
    shares: of equal priority the tenant with the smallest goes first, one without before all others.
    max_deaths: a batch that more workers died with is not taken, nor any that would come after it; direct
        requests are.
    only_direct: nothing but direct requests.
    held: batches that the worker has; their leases may have run out unnoticed.
    """

    models: frozenset[str] | None = None
    held: frozenset[str] = frozenset()
    above: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    max_deaths: int | None = None
    only_direct: bool = False

    def serves(self, models: Sequence[str] | None) -> bool:
        return self.models is None or models is None or self.models.issuperset(models)

    def allows(self, owner: str, priority: int) -> bool:
        return owner not in self.above or priority > self.above[owner]

    def share(self, owner: str) -> tuple[int, int]:
        return self.shares.get(owner, (0, 0))


ANY = Wanted()


def claim_batch(
    session: Session, *, worker_id: str, lease_seconds: int, takeover: bool, wanted: Wanted = ANY
) -> Claim | None:
    """Take the first batch that is to run and that nobody holds, or None: by priority, then by the shares of
    the tenants, then age.

    `takeover` ignores the leases of other workers: right where a lock guarantees that there are none left.
    A worker's id must be new at each start.
    """
    now = unix_now()
    is_free = or_(Batch.lease_owner.is_(None), Batch.lease_expires_at <= now)
    if takeover:
        is_free = or_(is_free, Batch.lease_owner != worker_id)
    is_to_run = and_(
        Batch.status == BatchStatus.IN_PROGRESS, Batch.expires_at > now, Batch.paused_at.is_(None), is_free
    )
    if wanted.only_direct:
        is_to_run = and_(Batch.is_direct, is_to_run)
    columns = (Batch.id, Batch.owner, Batch.priority, Batch.models, Batch.deaths, Batch.is_direct)
    candidates = session.execute(select(*columns).where(is_to_run).order_by(Batch.created_at, Batch.id)).all()
    in_order = sorted(candidates, key=lambda batch: (-batch.priority, wanted.share(batch.owner)))
    for batch_id, owner, priority, models, deaths, is_direct in in_order:
        if batch_id in wanted.held or not wanted.serves(models) or not wanted.allows(owner, priority):
            continue
        if wanted.max_deaths is not None and deaths > wanted.max_deaths and not is_direct:
            return None
        chosen = select(Batch).where(Batch.id == batch_id, is_to_run)
        batch = session.scalar(chosen.with_for_update(skip_locked=True))
        if batch is not None and (claim := _take(session, batch, worker_id, lease_seconds)):
            return claim
    return None


def _take(session: Session, batch: Batch, worker_id: str, lease_seconds: int) -> Claim | None:
    storage_key = session.scalar(select(File.storage_key).where(File.id == batch.input_file_id))
    if storage_key is None:
        return None  # its end is near: the input is gone
    if batch.lease_owner not in (None, worker_id):
        batch.deaths += 1  # whoever ends in order gives the lease back
    batch.epoch += 1
    batch.lease_owner = worker_id
    batch.lease_expires_at = unix_now() + lease_seconds
    session.flush()
    return Claim(
        batch_id=batch.id,
        epoch=batch.epoch,
        worker_id=worker_id,
        owner=batch.owner,
        endpoint=batch.endpoint,
        storage_key=storage_key,
        deaths=batch.deaths,
        priority=batch.priority,
        input_tokens=batch.input_tokens,
        output_tokens=batch.output_tokens,
        is_direct=batch.is_direct,
    )


class Standing(NamedTuple):
    """What has become of a claimed batch."""

    status: BatchStatus
    is_paused: bool


def renew_lease(
    session: Session, claim: Claim, lease_seconds: int, progress: dict[str, Any] | None = None
) -> Standing | None:
    """Hold the batch for another `lease_seconds`; returns how it stands, or None if the claim is lost.

    `progress`: what is told of it meanwhile.
    """
    held = update(Batch).where(Batch.id == claim.batch_id, Batch.epoch == claim.epoch)
    if not changed_rows(session, held.values(lease_expires_at=unix_now() + lease_seconds, progress=progress)):
        return None
    query = select(Batch.status, Batch.paused_at).where(Batch.id == claim.batch_id)
    status, paused_at = session.execute(query).one()
    return Standing(BatchStatus(status), paused_at is not None)


def release(session: Session, claim: Claim, *, died: bool = False) -> None:
    """Give the batch back; nothing happens if the claim is lost. `died`: an error ends the worker."""
    held = update(Batch).where(Batch.id == claim.batch_id, Batch.epoch == claim.epoch)
    deaths = Batch.deaths + int(died)
    changed_rows(
        session, held.values(lease_owner=None, lease_expires_at=None, deaths=deaths, progress=null())
    )


def fence(session: Session, batch_id: str, *, status: BatchStatus, epoch: int) -> int | None:
    """Shut out whoever holds the batch in `epoch`; the new epoch, or None if status or epoch have changed."""
    statement = (
        update(Batch)
        .where(Batch.id == batch_id, Batch.status == status, Batch.epoch == epoch)
        .values(epoch=epoch + 1, lease_owner=None, lease_expires_at=None)
    )
    return epoch + 1 if changed_rows(session, statement) else None


def locked_status(session: Session, batch_id: str, epoch: int) -> BatchStatus:
    """The batch's status, fixed until the transaction ends. Raises LeaseLost unless `epoch` is its epoch."""
    query = select(Batch.status).where(Batch.id == batch_id, Batch.epoch == epoch).with_for_update()
    status = session.scalar(query)
    if status is None:
        raise LeaseLost(f"{batch_id}, epoch {epoch}")
    return BatchStatus(status)
