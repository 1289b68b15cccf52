"""The worker: claims batches, runs them on the engine, hands them on. No step waits for the database.

Three threads: this one claims, translates and steps; the heartbeat renews leases; the recorder commits.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from app.batch_engine import BatchEngine
from app.batch_telemetry import Meter
from app.db.batches import get_batch, transition
from app.db.leases import LeaseLost, release
from app.db.lines import undo_attempts
from app.db.locks import try_lock
from app.db.session import Database
from app.db.telemetry import save_telemetry
from app.express import Express
from app.heartbeat import Heartbeat, HeartbeatFailed
from app.intake import Intake
from app.lifecycle import BatchStatus
from app.outage import OUTAGE, Stopped, reason, ride_out
from app.pace import TELL_SECONDS, Pace
from app.results import Recorder
from app.running import RunningBatch, line_id
from app.settings import Settings, StartupError
from app.storage import Storage
from app.worker_metrics import WorkerMetrics
from engine.request import Completion

SETTLE_SECONDS = 0.05  # between looks at the recorder, when the engine has nothing to do
# A stop is quick: results that an outage holds back for longer than this are computed again later.
CLOSE_PATIENCE_SECONDS = 5.0
# The worker of a killed `serve` needs a moment to notice, and the next `serve` must find the lock free.
LOCK_PATIENCE_SECONDS = 5.0

log = logging.getLogger(__name__)


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
        self._pace = Pace()
        self._express = Express()
        self._figures = WorkerMetrics()
        self._next_figures_at = 0.0  # monotonic

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
                self._meter = Meter(self._engine.stats)
                self._recorder = Recorder(self._database)
                self._heartbeat = Heartbeat(
                    self._database,
                    self._settings.lease_seconds,
                    worker_id=self._worker_id,
                    models=self._settings.served_models,
                )
                self._intake = self._new_intake(stop)
                try:
                    self._work(stop, on_progress or (lambda progress: None), until_idle)
                except Stopped:
                    log.info("Stopped while waiting for the database.")
                except HeartbeatFailed:
                    self._close()  # no fault of the lines
                    raise
                except BaseException:
                    self._close(died=True)
                    raise
                self._close()
        except Stopped:
            log.info("Stopped while waiting for another worker.")

    def _new_intake(self, stop: threading.Event) -> Intake:
        return Intake(
            self._database,
            self._storage,
            self._settings,
            worker_id=self._worker_id,
            engine=self._engine,
            recorder=self._recorder,
            heartbeat=self._heartbeat,
            stop=stop,
        )

    def _work(self, stop: threading.Event, on_progress: Callable[[Progress], None], until_idle: bool) -> None:
        while not stop.is_set():
            self._recorder.check()
            self._heartbeat.check()
            self._take_work()
            self._drop_departing()
            for batch in self._running:
                self._intake.translate(batch)
                self._intake.feed(batch, self._running)
            if self._engine.has_work:
                self._answer(self._step())
            elif any(batch.untranslated for batch in self._running):
                pass  # nothing to step until it is translated
            elif self._running:
                self._recorder.wait(SETTLE_SECONDS)
            elif until_idle:
                return
            else:
                self._intake.rest()
            for batch in self._running:
                on_progress(_progress(batch))
            self._tell()
            self._settle(stop)

    def _take_work(self) -> None:
        while (batch := self._intake.next_batch(self._running)) is not None:
            # Direct requests are translated and fed before all others.
            self._running.insert(0 if batch.claim.is_direct else len(self._running), batch)

    def _step(self) -> Sequence[Completion]:
        has_direct = any(batch.claim.is_direct and batch.unanswered for batch in self._running)
        completions, seconds = self._express.step(self._engine, has_direct)
        self._figures.stepped(seconds, self._engine.load.step_tokens, completions)
        return completions

    def _answer(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            batch = next(b for b in self._running if line_id(completion.request_id) in b.unanswered)
            if (result := batch.answer(completion)) is not None:
                self._pace.answered(result.input_tokens + result.output_tokens)
                self._recorder.put(batch.queue, [result])

    def _tell(self) -> None:
        if time.monotonic() >= self._next_figures_at:
            self._next_figures_at = time.monotonic() + TELL_SECONDS
            self._heartbeat.figures = self._figures.as_json(self._engine, self._recorder, self._running)
        if not self._running:
            self._pace.rest()
            self._meter.skip(self._engine.stats)
        elif self._pace.is_due:
            self._pace.tell(self._running, self._engine)
            self._measure()

    def _measure(self) -> None:
        stats = self._engine.stats
        point = self._meter.look(stats)
        if point is not None:
            for batch in self._running:
                if not batch.claim.is_direct:
                    batch.measure(point, stats.kv_capacity_tokens)

    def _drop_departing(self) -> None:
        """Take the lines of cancelled, closed and lost batches out of the engine."""
        for batch in self._running:
            if batch.is_departing and batch.has_lines:
                log.info(
                    "%s leaves the engine with %d lines.",
                    batch.claim.batch_id,
                    len(batch.unanswered),
                    extra={"batch_id": batch.claim.batch_id},
                )
                self._engine.drop(batch.request_ids)
                batch.leave()

    def _settle(self, stop: threading.Event) -> None:
        """Let go of the batches that have no line left to answer and no result left to commit."""
        for batch in list(self._running):
            if batch.has_lines or not self._recorder.finish(batch.queue):
                continue
            self._measure()
            self._forget(batch)
            if batch.is_lost:
                self._figures.lease_lost()
            else:
                ride_out(partial(self._hand_on, batch), stop)

    def _hand_on(self, batch: RunningBatch, *, died: bool = False) -> None:
        """To the keeper, which writes the files; a batch that was left early only loses its lease."""
        claim = batch.claim
        running, done = BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING
        watch = batch.watch
        with self._database.begin() as session:
            if watch.outline or watch.series:
                with suppress(LeaseLost):
                    save_telemetry(session, claim, outline=watch.outline, series=watch.series)
            if all_lines_answered(session, claim.batch_id):
                transition(session, claim.batch_id, running, done, epoch=claim.epoch)
            elif batch.undone:
                with suppress(LeaseLost):  # then it is another's business
                    undo_attempts(session, claim, batch.undone)
            release(session, claim, died=died)

    def _forget(self, batch: RunningBatch) -> None:
        self._heartbeat.unwatch(batch.watch)
        self._running.remove(batch)

    def _close(self, *, died: bool = False) -> None:
        """Commit what is finished and give back what is not; an outage makes us go without.

        `died`: an error ends the worker. The attempts at what it was running then count.
        """
        num_lost = self._recorder.close(CLOSE_PATIENCE_SECONDS)
        if num_lost:
            log.warning("%d results could not be stored: their lines will run again.", num_lost)
        self._heartbeat.close()
        for batch in self._running:
            if not died:
                batch.leave()
            try:
                self._hand_on(batch, died=died)
            except OUTAGE as error:
                log.warning(
                    "The lease of %s is left to end (%s).",
                    batch.claim.batch_id,
                    reason(error),
                    extra={"batch_id": batch.claim.batch_id},
                )
        self._running.clear()
        try:
            self._intake.close()
        except OUTAGE as error:
            log.warning("A lease is left to end (%s).", reason(error))
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
