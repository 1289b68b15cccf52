"""Keeps a worker's claims alive from a thread of its own, and notices what became of their batches."""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.db.leases import Claim, LeaseLost, Standing, renew_lease
from app.db.session import Database
from app.db.telemetry import save_telemetry
from app.db.workers import SIGN_SECONDS, give_sign, sign_off
from app.lifecycle import BatchStatus
from app.outage import OUTAGE, reason

HEARTBEAT_SECONDS = 1.0
TELEMETRY_SECONDS = 5.0  # between two writings of a series, some kilobytes each
RUNNING = Standing(BatchStatus.IN_PROGRESS, is_paused=False)

log = logging.getLogger(__name__)


class HeartbeatFailed(Exception):
    """The thread ended by an error that nobody foresaw: leases are renewed no more."""


@dataclass(eq=False)
class Watch:
    """One claim under watch. `standing`: the batch's at the last heartbeat; None: the claim is lost.

    outline, series: of app/batch_telemetry.py, never changed in place.
    """

    claim: Claim
    standing: Standing | None = RUNNING
    progress: dict[str, Any] | None = None  # what the next heartbeat tells of the batch
    outline: dict[str, Any] | None = None
    series: dict[str, Any] | None = None
    told_at: float = 0.0  # monotonic time of the last writing of the series
    has_told_outline: bool = False

    @property
    def is_lost(self) -> bool:
        return self.standing is None

    @property
    def is_running(self) -> bool:
        """Whether the batch still is this worker's to run."""
        return self.standing == RUNNING


class Heartbeat:
    """Renews the leases of all watched claims about once a second, through outages too."""

    def __init__(
        self, database: Database, lease_seconds: int, *, worker_id: str, models: Sequence[str]
    ) -> None:
        self.figures: dict[str, Any] | None = None  # what the next sign of life tells of the worker
        self._worker_id = worker_id
        self._models = models
        self._next_sign_at = 0.0  # monotonic
        self._database = database
        self._lease_seconds = lease_seconds
        self._watches: list[Watch] = []
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def watch(self, claim: Claim) -> Watch:
        watch = Watch(claim)
        self._watches = [*self._watches, watch]
        return watch

    def unwatch(self, watch: Watch) -> None:
        self._watches = [other for other in self._watches if other is not watch]

    def check(self) -> None:
        """Raises HeartbeatFailed if the thread has ended by an error."""
        if self._error is not None:
            raise HeartbeatFailed(str(self._error)) from self._error

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        try:
            with self._database.begin() as session:
                sign_off(session, self._worker_id)
        except OUTAGE as error:
            log.warning("This worker cannot sign off (%s).", reason(error))

    def _run(self) -> None:
        try:
            self._sign()
            while not self._stop.wait(HEARTBEAT_SECONDS):
                if self._watches:
                    self._renew(self._watches)
                self._sign()
        except BaseException as error:  # told to the worker, which ends with it
            self._error = error
            log.exception("The heartbeat failed.")

    def _sign(self) -> None:
        if time.monotonic() < self._next_sign_at:
            return
        self._next_sign_at = time.monotonic() + SIGN_SECONDS
        try:
            with self._database.begin() as session:
                give_sign(session, self._worker_id, self._models, self.figures)
        except OUTAGE as error:
            log.warning("This worker cannot say that it lives (%s).", reason(error))

    def _renew(self, watches: Sequence[Watch]) -> None:
        try:
            with self._database.begin() as session:
                standings = [
                    renew_lease(session, watch.claim, self._lease_seconds, watch.progress)
                    for watch in watches
                ]
            for watch, standing in zip(watches, standings, strict=True):
                watch.standing = standing
            for watch in watches:
                if watch.is_running:
                    self._tell(watch)
        except OUTAGE as error:
            # Running on is safe: whoever takes a batch over moves the epoch, which locks our writes out.
            log.warning("The leases of %d batches are not renewed (%s).", len(watches), reason(error))

    def _tell(self, watch: Watch) -> None:
        outline, series = watch.outline, watch.series
        is_new = outline is not None and not watch.has_told_outline
        is_due = series is not None and time.monotonic() >= watch.told_at + TELEMETRY_SECONDS
        if not (is_new or is_due):
            return
        with self._database.begin() as session, suppress(LeaseLost):
            save_telemetry(session, watch.claim, outline=outline, series=series)
        watch.told_at = time.monotonic()
        watch.has_told_outline = outline is not None
