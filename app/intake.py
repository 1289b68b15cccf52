"""How work comes into the engine: batches are claimed, translated, and fed as lines may run together."""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from app.batch_engine import BatchEngine
from app.batch_telemetry import Telemetry
from app.claims import Claims
from app.db.batches import transition
from app.db.leases import Claim, LeaseLost
from app.db.lines import PendingLine, record_attempts
from app.db.session import Database
from app.heartbeat import Heartbeat
from app.lifecycle import BatchStatus
from app.openai.body import TranslationContext
from app.outage import LONGEST_WAIT_SECONDS, Stopped, ride_out, trouble
from app.results import Recorder
from app.running import RunningBatch, RunningLine
from app.settings import Settings
from app.storage import BlobNotFound, Storage, StorageAway
from app.suspects import is_suspect
from app.translation import TranslatedLine, translate_lines

TRANSLATE_LINES = 256  # lines between looks at what became of the batch, while nothing else runs
_ALL_TENANTS = ("all",)  # no tenant's name
TRANSLATE_SECONDS = 0.02  # of translation between two steps, while others run

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
        self._engine = engine
        self._recorder = recorder
        self._heartbeat = heartbeat
        self._stop = stop
        self._fingerprint = _fingerprint(settings)
        self._claims = Claims(database, settings, worker_id=worker_id, stop=stop)

    def next_batch(self, running: Sequence[RunningBatch]) -> RunningBatch | None:
        """The next batch to run beside those that run; None if none is known. Raises Stopped."""
        opened = self._claims.next(running)
        if opened is None:
            return None
        claim = opened.claim
        log.info("Running %s.", claim.batch_id, extra={"batch_id": claim.batch_id})
        batch = RunningBatch(
            claim,
            self._heartbeat.watch(claim),
            self._recorder.open(claim),
            self._fingerprint,
            Telemetry(opened.series),
            prompt_tokens_done=claim.input_tokens,
            output_tokens_done=claim.output_tokens,
        )
        batch.untranslated = self._translated(batch, opened.lines)
        return batch

    def rest(self) -> None:
        """Wait until it is worth looking for work again. Raises Stopped."""
        self._claims.rest()

    def close(self) -> None:
        """Give back what was claimed and not begun. OUTAGE: then those leases run out."""
        self._claims.close()

    def translate(self, batch: RunningBatch) -> None:
        """Go on with the batch's translation for as long as others can wait."""
        if batch.untranslated is None or batch.is_departing:
            return
        stop_at = time.monotonic() + TRANSLATE_SECONDS
        while chunk := self._next_translated(batch):
            self._recorder.put(batch.queue, batch.take_in(chunk))
            if not self._engine.has_work or time.monotonic() >= stop_at:
                return
        batch.untranslated = None
        batch.line_up()

    def _next_translated(self, batch: RunningBatch) -> list[TranslatedLine]:
        """Some lines, none at the end."""
        assert batch.untranslated is not None
        num_lines = 1 if self._engine.has_work else TRANSLATE_LINES
        try:
            return list(islice(batch.untranslated, num_lines))
        except BlobNotFound:
            ride_out(partial(self._fail, batch.claim), self._stop)
            return []

    def feed(self, batch: RunningBatch, running: Sequence[RunningBatch]) -> None:
        """Let waiting lines into the engine, their attempts recorded before. Raises Stopped."""
        if batch.untranslated is not None or batch.is_departing:
            return
        lines = batch.next_lines()
        if not lines or (is_suspect(lines[-1].line.attempts) and not self._recorder.hurry(batch.queue)):
            return  # an answer that dies with the worker would leave its line among the suspects
        if batch.must_wait(lines, [other for other in running if other is not batch]):
            return
        try:
            ride_out(partial(self._record_attempts, batch.claim, lines), self._stop)
        except LeaseLost:
            batch.queue.is_lost = True
            return
        batch.enter(lines)
        requests = [request for running in lines for request in running.requests]
        owner = batch.claim.owner
        scope = owner if self._settings.share_prefixes == "tenant" else _ALL_TENANTS
        refusals = self._engine.add(requests, priority=batch.claim.priority, tenant=owner, scope=scope)
        wants_outline = batch.entered_whole and not batch.claim.is_direct
        if wants_outline and (outline := self._engine.outline(requests)) is not None:
            batch.plan(outline)
        refused, request_ids = batch.refuse(refusals)
        self._engine.drop(request_ids)
        self._recorder.put(batch.queue, refused)

    def _translated(self, batch: RunningBatch, lines: list[PendingLine]) -> Iterator[TranslatedLine]:
        """Waits where the storage is away. Raises BlobNotFound and Stopped."""
        context = TranslationContext(
            self._engine.tokenizer,
            self._engine.max_context,
            self._settings.default_max_tokens,
            self._engine.embedding_size,
            self._engine.normalises,
        )
        in_order = sorted(lines, key=lambda line: line.offset)
        num_done = 0
        while True:
            try:
                with self._storage.open(batch.claim.storage_key) as blob:
                    rest = in_order[num_done:]
                    for line in translate_lines(blob, rest, batch.endpoint, context, batch.claim.batch_id):
                        num_done += 1
                        yield line
                return
            except StorageAway as error:
                log.warning("%s; trying again.", trouble(error))
                if self._stop.wait(LONGEST_WAIT_SECONDS):
                    raise Stopped from error

    def _record_attempts(self, claim: Claim, lines: Sequence[RunningLine]) -> None:
        with self._database.begin() as session:
            record_attempts(session, claim, (running.line for running in lines))

    def _fail(self, claim: Claim) -> None:
        """The input is gone from the storage: nobody can ever run this batch."""
        if claim.is_direct:
            return  # whoever waited for it has gone
        log.error(
            "The input of %s is not in the storage: the batch fails.",
            claim.batch_id,
            extra={"batch_id": claim.batch_id},
        )
        error = {
            "code": "invalid_request",
            "message": "The input file is no longer in the storage.",
            "param": "file_id",
            "line": None,
        }
        running, failed = BatchStatus.IN_PROGRESS, BatchStatus.FAILED
        with self._database.begin() as session:
            transition(session, claim.batch_id, running, failed, epoch=claim.epoch, errors=[error])


def _fingerprint(settings: Settings) -> str:
    """Names what computes: the same request under another fingerprint may be answered otherwise."""
    what = f"{settings.model} {settings.dtype} {settings.device} {settings.quantize}"
    return f"fp_{hashlib.sha256(what.encode()).hexdigest()[:12]}"
