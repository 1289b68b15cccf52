"""Keeps a worker's claims alive from a thread of its own, and notices what became of their batches."""

import logging
import threading
from dataclasses import dataclass

from app.db.leases import Claim, Standing, renew_lease
from app.db.session import Database
from app.lifecycle import BatchStatus
from app.outage import OUTAGE, reason

HEARTBEAT_SECONDS = 1.0
RUNNING = Standing(BatchStatus.IN_PROGRESS, is_paused=False)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Watch:
    """One claim under watch. `standing`: the batch's at the last heartbeat; None: the claim is lost."""

    claim: Claim
    standing: Standing | None = RUNNING

    @property
    def is_lost(self) -> bool:
        return self.standing is None

    @property
    def is_running(self) -> bool:
        """Whether the batch still is this worker's to run."""
        return self.standing == RUNNING


class Heartbeat:
    """Renews the leases of all watched claims about once a second, through outages too."""

    def __init__(self, database: Database, lease_seconds: int) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._watches: list[Watch] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def watch(self, claim: Claim) -> Watch:
        watch = Watch(claim)
        self._watches = [*self._watches, watch]
        return watch

    def unwatch(self, watch: Watch) -> None:
        self._watches = [other for other in self._watches if other is not watch]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            for watch in self._watches:
                self._renew(watch)

    def _renew(self, watch: Watch) -> None:
        try:
            with self._database.begin() as session:
                watch.standing = renew_lease(session, watch.claim, self._lease_seconds)
        except OUTAGE as error:
            # Running on is safe: whoever takes the batch over moves the epoch, which locks our writes out.
            log.warning("The lease of %s is not renewed (%s).", watch.claim.batch_id, reason(error))
