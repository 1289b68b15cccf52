"""Which batches a worker takes: looked for beside its steps, claimed, and their lines read."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from app.db.direct import waiting_models
from app.db.leases import Claim, LeaseLost, Wanted, claim_batch, release
from app.db.lines import PendingLine, forgive, pending_lines, record_results
from app.db.session import Database
from app.db.telemetry import get_telemetry
from app.outage import Stopped, ride_out
from app.results import failure
from app.running import RunningBatch
from app.settings import Settings
from app.suspects import ALONE_DEATHS, GUILTY_DEATHS, WATCHED_DEATHS, guilty_error, is_suspect

CLAIM_SECONDS = 1.0  # between looks for more work, while there is some
POLL_SECONDS = 0.5  # between looks for work, when there is none
# Between looks for direct requests, which is how late one is seen: a query that a tiny index answers.
GLANCE_SECONDS = 0.1
MAX_CLAIMS = 16  # each costs a heartbeat a second; those on direct requests do not count

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A claim, the lines that it is about, and the series that earlier claims left."""

    claim: Claim
    lines: list[PendingLine]
    series: dict[str, Any] | None


class Claims:
    """Looks for batches that one worker can run."""

    def __init__(
        self, database: Database, settings: Settings, *, worker_id: str, stop: threading.Event
    ) -> None:
        self._database = database
        self._settings = settings
        self._worker_id = worker_id
        self._stop = stop
        self._models = frozenset(settings.served_models)
        self._looker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="claims")
        self._closing = threading.Event()
        self._hurry = threading.Event()  # the look under way is to end
        self._look: Future[list[Opened]] | None = None
        self._found: deque[Opened] = deque()
        self._num_claims = 0
        self._last_claims: dict[str, int] = {}  # by tenant: number of its last claim

    def next(self, running: Sequence[RunningBatch]) -> Opened | None:
        """The next batch to run beside those that run; None if there is none, or none is known yet.

        While batches run a thread looks, and what it finds comes with a later call. Raises Stopped.
        """
        if self._look is not None and (self._look.done() or not running):
            self._found.extend(self._end_look())
        if not running and not self._found:
            opened = self._claim_and_read(self._wanted(running), self._stop)
            self._found.extend([] if opened is None else [opened])
        if self._found:
            return self._count(self._found.popleft())
        if running and self._look is None:
            self._hurry.clear()
            self._look = self._looker.submit(self._look_around, self._wanted(running))
        return None

    def rest(self) -> None:
        """Wait before the next look for work; less long if a direct request comes. Raises Stopped."""
        wake_at = time.monotonic() + POLL_SECONDS
        while time.monotonic() < wake_at and not self._stop.wait(GLANCE_SECONDS):
            if ride_out(self._sees_direct, self._stop):
                return

    def close(self) -> None:
        """Ends the thread; claims that nobody has taken from it are given back. OUTAGE: then they run out."""
        self._closing.set()
        self._hurry.set()
        self._looker.shutdown()
        with suppress(Stopped):
            self._found.extend([] if self._look is None else self._look.result())
        for opened in self._found:
            with self._database.begin() as session:
                release(session, opened.claim)

    def _end_look(self) -> list[Opened]:
        """What the thread found, waited for. Raises Stopped."""
        assert self._look is not None
        self._hurry.set()
        while not self._look.done():
            if self._stop.wait(0.01):
                raise Stopped
        look, self._look = self._look, None
        return look.result()

    def _count(self, opened: Opened) -> Opened:
        claim = opened.claim
        if not claim.is_direct:  # it is no turn of the tenant's
            self._num_claims += 1
            self._last_claims[claim.owner] = self._num_claims
        return opened

    def _look_around(self, wanted: Wanted) -> list[Opened]:
        """Claims a batch, or waits until it is time to look again for one; direct requests end the wait."""
        if not wanted.only_direct:
            opened = self._claim_and_read(wanted, self._closing)
            if opened is not None:
                return [opened]
        look_again_at = time.monotonic() + CLAIM_SECONDS
        while not (found := self._claim_direct(wanted)) and time.monotonic() < look_again_at:
            if self._hurry.wait(GLANCE_SECONDS):
                break
        return found

    def _claim_direct(self, wanted: Wanted) -> list[Opened]:
        """All direct requests that wait."""
        found: list[Opened] = []
        if ride_out(self._sees_direct, self._closing):
            only_direct = replace(wanted, only_direct=True)
            while (opened := self._claim_and_read(only_direct, self._closing)) is not None:
                found.append(opened)
        return found

    def _sees_direct(self) -> bool:
        with self._database.read() as session:
            return any(self._models.issuperset(models) for models in waiting_models(session))

    def _wanted(self, running: Sequence[RunningBatch]) -> Wanted:
        """What may join the running batches. Those on direct requests keep nothing away."""
        held = frozenset(batch.claim.batch_id for batch in running)
        running = [batch for batch in running if not batch.claim.is_direct]
        is_taken = any(is_suspect(batch.claim.deaths) or batch.untranslated for batch in running)
        # Only what is not behind a whole budget of the same tenant and its own or a higher priority.
        above: dict[str, int] = {}
        num_tokens: Counter[str] = Counter()
        for batch in sorted(running, key=lambda batch: -batch.claim.priority):
            claim = batch.claim
            num_tokens[claim.owner] += batch.num_prompt_tokens
            if num_tokens[claim.owner] >= self._settings.resolved_claim_tokens:
                above.setdefault(claim.owner, claim.priority)
        return Wanted(
            self._models,
            held,
            above,
            # By tenant: prompt tokens that are left of its batches here, and number of its last claim.
            {owner: (num_tokens[owner], number) for owner, number in self._last_claims.items()},
            max_deaths=WATCHED_DEATHS - 1 if running else None,
            only_direct=is_taken or len(running) >= MAX_CLAIMS,
        )

    def _claim_and_read(self, wanted: Wanted, stop: threading.Event) -> Opened | None:
        claim = ride_out(partial(self._claim, wanted), stop)
        if claim is None:
            return None
        most_deaths = 1 if claim.is_direct else GUILTY_DEATHS
        try:
            if claim.deaths >= most_deaths:
                ride_out(partial(self._give_up_guilty, claim, most_deaths), stop)
            return ride_out(partial(self._open, claim), stop)
        except LeaseLost:
            return None

    def _claim(self, wanted: Wanted) -> Claim | None:
        with self._database.begin() as session:
            return claim_batch(
                session,
                worker_id=self._worker_id,
                lease_seconds=self._settings.lease_seconds,
                takeover=self._database.is_sqlite,  # the lock says that no other worker lives
                wanted=wanted,
            )

    def _open(self, claim: Claim) -> Opened:
        with self._database.read() as session:
            told = get_telemetry(session, claim.batch_id)
            series = None if told is None else told.series
            return Opened(claim, pending_lines(session, claim.batch_id), series)

    def _give_up_guilty(self, claim: Claim, most_deaths: int) -> None:
        """Answer the lines that killed the worker time and again; others' deaths are explained then."""
        with self._database.begin() as session:
            guilty = [line for line in pending_lines(session, claim.batch_id) if line.attempts >= most_deaths]
            if guilty:
                errors = [guilty_error(line, is_direct=claim.is_direct) for line in guilty]
                results = map(failure, guilty, (line.attempts for line in guilty), errors)
                record_results(session, claim, list(results))
                forgive(session, claim, most_deaths=ALONE_DEATHS)
        for line in guilty:
            log.error(
                "Line %d of %s is given up: it ends the worker.",
                line.line,
                claim.batch_id,
                extra={"batch_id": claim.batch_id, "line": line.line, "custom_id": line.custom_id},
            )
