"""How work comes into the engine: batches are claimed, translated, and fed as lines may run together."""

import logging
import threading
from collections.abc import Sequence
from functools import partial
from itertools import islice

from app.batch_engine import BatchEngine
from app.db.batches import transition
from app.db.leases import Claim, LeaseLost, claim_batch
from app.db.lines import PendingLine, forgive, pending_lines, record_attempts, record_results
from app.db.session import Database
from app.heartbeat import Heartbeat
from app.lifecycle import BatchStatus
from app.openai.body import TranslationContext
from app.outage import ride_out
from app.results import Recorder, failure
from app.running import RunningBatch, RunningLine
from app.settings import Settings
from app.storage import BlobNotFound, Storage
from app.suspects import GUILTY_DEATHS, guilty_error, is_suspect
from app.translation import translate_lines

TRANSLATE_LINES = 256  # lines between looks at what became of the batch, while it is translated

log = logging.getLogger(__name__)


class Intake:
    """Claims batches for one worker and feeds its engine."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        settings: Settings,
        *,
        worker_id: str,
        engine: BatchEngine,
        recorder: Recorder,
        heartbeat: Heartbeat,
        stop: threading.Event,
    ) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._worker_id = worker_id
        self._engine = engine
        self._recorder = recorder
        self._heartbeat = heartbeat
        self._stop = stop

    def claim(self, fingerprint: str) -> RunningBatch | None:
        """The next batch, under watch, with its lines still to come; None if there is none."""
        claim = ride_out(self._claim, self._stop)
        if claim is None:
            return None
        log.info("Running %s.", claim.batch_id)
        return RunningBatch(claim, self._heartbeat.watch(claim), self._recorder.open(claim), fingerprint)

    def open(self, batch: RunningBatch) -> None:
        """Read and translate the batch's unfinished lines. Raises Stopped."""
        try:
            if batch.claim.deaths >= GUILTY_DEATHS:
                ride_out(partial(self._give_up_guilty, batch.claim), self._stop)
            self._translate(batch)
        except LeaseLost:
            batch.queue.is_lost = True
        except BlobNotFound:
            ride_out(partial(self._fail, batch.claim), self._stop)

    def feed(self, batch: RunningBatch) -> None:
        """Let waiting lines into the engine, their attempts recorded before. Raises Stopped."""
        lines = batch.next_lines()
        if not lines or (is_suspect(lines[-1].line.attempts) and not self._recorder.hurry(batch.queue)):
            return  # an answer that dies with the worker would leave its line among the suspects
        try:
            ride_out(partial(self._record_attempts, batch.claim, lines), self._stop)
        except LeaseLost:
            batch.queue.is_lost = True
            return
        batch.enter(lines)
        refusals = self._engine.add([running.request for running in lines])
        self._recorder.put(batch.queue, [batch.refuse(refusal) for refusal in refusals])

    def _claim(self) -> Claim | None:
        with self._database.begin() as session:
            return claim_batch(
                session,
                worker_id=self._worker_id,
                lease_seconds=self._settings.lease_seconds,
                takeover=self._database.is_sqlite,  # the lock says that no other worker lives
            )

    def _translate(self, batch: RunningBatch) -> None:
        """Lines whose body is refused are recorded at once."""
        context = TranslationContext(
            self._engine.tokenizer, self._engine.max_context, self._settings.default_max_tokens
        )
        lines = ride_out(partial(self._pending, batch.claim), self._stop)
        with self._storage.open(batch.claim.storage_key) as blob:
            translated = translate_lines(blob, lines, batch.endpoint, context, batch.claim.batch_id)
            while chunk := list(islice(translated, TRANSLATE_LINES)):
                if self._stop.is_set() or batch.is_departing:
                    break
                self._recorder.put(batch.queue, batch.take_in(chunk))
        batch.line_up()

    def _pending(self, claim: Claim) -> list[PendingLine]:
        with self._database.read() as session:
            return pending_lines(session, claim.batch_id)

    def _record_attempts(self, claim: Claim, lines: Sequence[RunningLine]) -> None:
        with self._database.begin() as session:
            record_attempts(session, claim, (running.line for running in lines))

    def _give_up_guilty(self, claim: Claim) -> None:
        """Answer the lines that killed the worker time and again; nothing is held against the others then."""
        with self._database.begin() as session:
            guilty = [
                line for line in pending_lines(session, claim.batch_id) if line.attempts >= GUILTY_DEATHS
            ]
            if guilty:
                record_results(
                    session, claim, [failure(line, line.attempts, guilty_error(line)) for line in guilty]
                )
                forgive(session, claim)
        for line in guilty:
            log.error("Line %d of %s is given up: it ends the worker.", line.line, claim.batch_id)

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
