"""The worker: claims batches, runs them on the engine, hands them on. No step waits for the database.

Three threads: this one claims, translates and steps; the heartbeat renews leases; the recorder commits.
"""

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

from sqlalchemy.orm import Session

from app.db.batches import get_batch, transition
from app.db.leases import Claim, LeaseLost, claim_batch, release
from app.db.lines import PendingLine, pending_lines, record_attempts
from app.db.locks import try_lock
from app.db.session import Database
from app.heartbeat import Heartbeat
from app.lifecycle import BatchStatus
from app.openai.body import PromptTokenizer, TranslationContext
from app.outage import OUTAGE, Stopped, reason, ride_out
from app.results import Recorder
from app.running import RunningBatch
from app.settings import Settings, StartupError
from app.storage import BlobNotFound, Storage
from app.translation import translate_lines
from engine.request import Completion, Refusal, Request

# Several batches at once would share prefixes across jobs; fairness between them has to come first.
MAX_CLAIMS = 1
POLL_SECONDS = 0.5  # between looks for work, when there is none
SETTLE_SECONDS = 0.05  # between looks at the recorder, when the engine has nothing to do
TRANSLATE_LINES = 256  # lines between looks at what became of the batch, while it is translated
# A stop is quick: results that an outage holds back for longer than this are computed again later.
CLOSE_PATIENCE_SECONDS = 5.0
# The worker of a killed `serve` needs a moment to notice, and the next `serve` must find the lock free.
LOCK_PATIENCE_SECONDS = 5.0

log = logging.getLogger(__name__)


class BatchEngine(Protocol):
    """What the worker needs of an engine; `engine.engine.Engine` is the real one."""

    @property
    def tokenizer(self) -> PromptTokenizer: ...
    @property
    def max_context(self) -> int: ...
    @property
    def has_work(self) -> bool: ...
    def add(self, requests: Sequence[Request]) -> list[Refusal]: ...
    def drop(self, request_ids: Collection[int]) -> None: ...
    def step(self) -> list[Completion]: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Lines of one batch that were committed since this worker claimed it."""

    batch_id: str
    num_completed: int
    num_failed: int


class Worker:
    """One engine and the batches it runs."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        engine_factory: Callable[[], BatchEngine],
    ) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._engine_factory = engine_factory
        self._worker_id = f"worker_{uuid.uuid4().hex}"
        self._running: list[RunningBatch] = []

    def run(
        self,
        stop: threading.Event,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        until_idle: bool = False,
    ) -> None:
        """Work until `stop` is set, or until nothing is left to do if `until_idle`.

        Finished results are committed and leases released before it returns. Raises StartupError
        if another worker holds the database, and what the engine factory raises.
        """
        try:
            with self._only_worker(stop):
                self._engine = self._engine_factory()
                self._recorder = Recorder(self._database)
                self._heartbeat = Heartbeat(self._database, self._settings.lease_seconds)
                try:
                    self._work(stop, on_progress or (lambda progress: None), until_idle)
                finally:
                    self._close()
        except Stopped:
            log.info("Stopped while waiting.")

    def _work(self, stop: threading.Event, on_progress: Callable[[Progress], None], until_idle: bool) -> None:
        while not stop.is_set():
            self._recorder.check()
            self._take_work(stop)
            self._drop_departing()
            if self._engine.has_work:
                self._answer(self._engine.step())
            elif self._running:
                self._recorder.wait(SETTLE_SECONDS)
            elif until_idle:
                return
            else:
                stop.wait(POLL_SECONDS)
            for batch in self._running:
                on_progress(_progress(batch))
            self._settle(stop)

    def _take_work(self, stop: threading.Event) -> None:
        while len(self._running) < MAX_CLAIMS:
            claim = ride_out(self._claim, stop)
            if claim is None:
                return
            self._start(claim, stop)

    def _claim(self) -> Claim | None:
        with self._database.begin() as session:
            return claim_batch(
                session,
                worker_id=self._worker_id,
                lease_seconds=self._settings.lease_seconds,
                takeover=self._database.is_sqlite,  # the lock says that no other worker lives
            )

    def _start(self, claim: Claim, stop: threading.Event) -> None:
        """Bring the claim's unfinished lines into the engine."""
        log.info("Running %s.", claim.batch_id)
        batch = RunningBatch(
            claim, self._heartbeat.watch(claim), self._recorder.open(claim), _fingerprint(self._settings)
        )
        self._running.append(batch)
        try:
            requests = self._translate(batch, ride_out(lambda: self._pending(claim), stop), stop)
            if stop.is_set() or batch.is_departing:
                batch.unanswered.clear()
                return
            ride_out(lambda: self._record_attempts(claim, requests), stop)
        except LeaseLost:
            batch.unanswered.clear()
            batch.queue.is_lost = True
        except BlobNotFound:
            ride_out(lambda: self._fail(claim), stop)
        else:
            refusals = self._engine.add(requests)
            self._recorder.put(batch.queue, [batch.refuse(refusal) for refusal in refusals])

    def _translate(
        self, batch: RunningBatch, lines: list[PendingLine], stop: threading.Event
    ) -> list[Request]:
        """Requests for the engine; lines whose body is refused are recorded at once."""
        context = TranslationContext(
            self._engine.tokenizer, self._engine.max_context, self._settings.default_max_tokens
        )
        requests: list[Request] = []
        with self._storage.open(batch.claim.storage_key) as blob:
            translated = translate_lines(blob, lines, batch.endpoint, context, batch.claim.batch_id)
            while chunk := list(islice(translated, TRANSLATE_LINES)):
                if stop.is_set() or batch.is_departing:
                    break
                admitted, refused = batch.admit(chunk)
                requests.extend(admitted)
                self._recorder.put(batch.queue, refused)
        return requests

    def _pending(self, claim: Claim) -> list[PendingLine]:
        with self._database.read() as session:
            return pending_lines(session, claim.batch_id)

    def _record_attempts(self, claim: Claim, requests: Sequence[Request]) -> None:
        with self._database.begin() as session:
            record_attempts(session, claim, [request.request_id for request in requests])

    def _fail(self, claim: Claim) -> None:
        """The input is gone from the storage: nobody can ever run this batch."""
        log.error("The input of %s is not in the storage: the batch fails.", claim.batch_id)
        error = {
            "code": "invalid_request",
            "message": "The input file is no longer in the storage.",
            "param": "file_id",
            "line": None,
        }
        running, failed = BatchStatus.IN_PROGRESS, BatchStatus.FAILED
        with self._database.begin() as session:
            transition(session, claim.batch_id, running, failed, epoch=claim.epoch, errors=[error])

    def _answer(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            batch = next(b for b in self._running if completion.request_id in b.unanswered)
            self._recorder.put(batch.queue, [batch.answer(completion)])

    def _drop_departing(self) -> None:
        """Take the lines of cancelled, closed and lost batches out of the engine."""
        for batch in self._running:
            if batch.is_departing and batch.unanswered:
                log.info("%s leaves the engine with %d lines.", batch.claim.batch_id, len(batch.unanswered))
                self._engine.drop(batch.unanswered.keys())
                batch.unanswered.clear()

    def _settle(self, stop: threading.Event) -> None:
        """Let go of the batches that have no line left to answer and no result left to commit."""
        for batch in list(self._running):
            if batch.unanswered or not self._recorder.finish(batch.queue):
                continue
            self._forget(batch)
            if not batch.is_lost:
                ride_out(partial(self._hand_on, batch.claim), stop)

    def _hand_on(self, claim: Claim) -> None:
        """To the keeper, which writes the files; a batch that was left early only loses its lease."""
        running, done = BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING
        with self._database.begin() as session:
            if all_lines_answered(session, claim.batch_id):
                transition(session, claim.batch_id, running, done, epoch=claim.epoch)
            release(session, claim)

    def _forget(self, batch: RunningBatch) -> None:
        self._heartbeat.unwatch(batch.watch)
        self._running.remove(batch)

    def _close(self) -> None:
        """Commit what is finished and give back what is not; an outage makes us go without."""
        num_lost = self._recorder.close(CLOSE_PATIENCE_SECONDS)
        if num_lost:
            log.warning("%d results could not be stored: their lines will run again.", num_lost)
        self._heartbeat.close()
        for batch in self._running:
            try:
                self._hand_on(batch.claim)
            except OUTAGE as error:
                log.warning("The lease of %s is left to end (%s).", batch.claim.batch_id, reason(error))
        self._running.clear()
        self._recorder.check()

    @contextmanager
    def _only_worker(self, stop: threading.Event) -> Iterator[None]:
        """On SQLite one worker at a time: it may then take over what a dead one held."""
        if not self._database.is_sqlite:
            yield
            return
        give_up_at = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            with try_lock(self._database, "worker") as held:
                if held:
                    yield
                    return
            if stop.wait(0.1):
                raise Stopped
            if time.monotonic() >= give_up_at:
                raise StartupError(
                    f"Another worker already runs on {self._database}: stop it first, or use Postgres, "
                    "where several can share a database."
                )


def all_lines_answered(session: Session, batch_id: str) -> bool:
    batch = get_batch(session, batch_id)
    return batch is not None and batch.completed + batch.failed == batch.total


def _progress(batch: RunningBatch) -> Progress:
    return Progress(batch.claim.batch_id, batch.queue.num_completed, batch.queue.num_failed)


def _fingerprint(settings: Settings) -> str:
    """Names what computes: the same request under another fingerprint may be answered otherwise."""
    what = f"{settings.model} {settings.dtype} {settings.device}"
    return f"fp_{hashlib.sha256(what.encode()).hexdigest()[:12]}"
