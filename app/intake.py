"""How work comes into the engine: batches are claimed, translated, and fed as lines may run together."""

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from app.batch_engine import BatchEngine
from app.db.batches import transition
from app.db.leases import Claim, LeaseLost, Wanted, claim_batch, release
from app.db.lines import PendingLine, forgive, pending_lines, record_attempts, record_results
from app.db.session import Database
from app.db.telemetry import get_telemetry
from app.heartbeat import Heartbeat
from app.lifecycle import BatchStatus
from app.openai.body import TranslationContext
from app.outage import Stopped, ride_out
from app.results import Recorder, failure
from app.running import RunningBatch, RunningLine
from app.settings import Settings
from app.storage import BlobNotFound, Storage
from app.suspects import ALONE_DEATHS, GUILTY_DEATHS, WATCHED_DEATHS, guilty_error, is_suspect
from app.telemetry import Telemetry
from app.translation import TranslatedLine, translate_lines

CLAIM_SECONDS = 1.0  # between looks for more work, while there is some
MAX_CLAIMS = 16  # each costs a heartbeat a second
TRANSLATE_LINES = 256  # lines between looks at what became of the batch, while nothing else runs
_ALL_TENANTS = ("all",)  # no tenant's name
TRANSLATE_SECONDS = 0.02  # of translation between two steps, while others run

log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """A claim, the lines that it is about, and the series that earlier claims left."""

    claim: Claim
    lines: list[PendingLine]
    series: dict[str, Any] | None


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
        self._fingerprint = _fingerprint(settings)
        self._models = frozenset(settings.served_models)
        self._looker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="claims")
        self._closing = threading.Event()
        self._look: Future[_Opened | None] | None = None
        self._next_look_at = 0.0  # monotonic
        self._num_claims = 0
        self._last_claims: dict[str, int] = {}  # by tenant: number of its last claim

    def next_batch(self, running: Sequence[RunningBatch]) -> RunningBatch | None:
        """The next batch to run beside those that run; None if there is none, or none is known yet.

        While batches run a thread looks, and what it finds comes with a later call. Raises Stopped.
        """
        if self._look is not None:
            if running and not self._look.done():
                return None
            opened = self._end_look()
            if running or opened is not None:
                return self._begin(opened)
        if not running:
            return self._begin(
                self._claim_and_read(Wanted(self._models, shares=self._shares([])), self._stop)
            )
        wanted = self._wanted(running) if time.monotonic() >= self._next_look_at else None
        if wanted is not None:
            self._look = self._looker.submit(self._claim_and_read, wanted, self._closing)
        return None

    def close(self) -> None:
        """Ends the thread; a claim that nobody has taken from it is given back. OUTAGE: then it runs out."""
        self._closing.set()
        self._looker.shutdown()
        with suppress(Stopped):
            opened = None if self._look is None else self._look.result()
            if opened is not None:
                with self._database.begin() as session:
                    release(session, opened.claim)

    def _end_look(self) -> _Opened | None:
        """What the thread found, waited for. Raises Stopped."""
        assert self._look is not None
        while not self._look.done():
            if self._stop.wait(0.01):
                raise Stopped
        look, self._look = self._look, None
        opened = look.result()
        self._next_look_at = time.monotonic() + CLAIM_SECONDS
        return opened

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

    def _wanted(self, running: Sequence[RunningBatch]) -> Wanted | None:
        """What may join the running batches; None: nothing."""
        is_taken = any(is_suspect(batch.claim.deaths) or batch.untranslated for batch in running)
        if is_taken or len(running) >= MAX_CLAIMS:
            return None
        # Only what is not behind a whole budget of the same tenant and its own or a higher priority.
        above: dict[str, int] = {}
        num_tokens: Counter[str] = Counter()
        for batch in sorted(running, key=lambda batch: -batch.claim.priority):
            claim = batch.claim
            num_tokens[claim.owner] += batch.num_prompt_tokens
            if num_tokens[claim.owner] >= self._settings.resolved_claim_tokens:
                above.setdefault(claim.owner, claim.priority)
        held = frozenset(batch.claim.batch_id for batch in running)
        return Wanted(self._models, held, above, self._shares(running), max_deaths=WATCHED_DEATHS - 1)

    def _shares(self, running: Sequence[RunningBatch]) -> dict[str, tuple[int, int]]:
        """By tenant: prompt tokens that are left of its batches here, and number of its last claim."""
        num_tokens: Counter[str] = Counter()
        for batch in running:
            num_tokens[batch.claim.owner] += batch.num_prompt_tokens
        return {owner: (num_tokens[owner], number) for owner, number in self._last_claims.items()}

    def _begin(self, opened: _Opened | None) -> RunningBatch | None:
        if opened is None:
            return None
        self._next_look_at = 0.0  # more may wait behind it
        claim = opened.claim
        self._num_claims += 1
        self._last_claims[claim.owner] = self._num_claims
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

    def _claim_and_read(self, wanted: Wanted, stop: threading.Event) -> _Opened | None:
        claim = ride_out(partial(self._claim, wanted), stop)
        if claim is None:
            return None
        try:
            if claim.deaths >= GUILTY_DEATHS:
                ride_out(partial(self._give_up_guilty, claim), stop)
            return ride_out(partial(self._open, claim), stop)
        except LeaseLost:
            return None

    def feed(self, batch: RunningBatch) -> None:
        """Let waiting lines into the engine, their attempts recorded before. Raises Stopped."""
        if batch.untranslated is not None or batch.is_departing:
            return
        lines = batch.next_lines()
        if not lines or (is_suspect(lines[-1].line.attempts) and not self._recorder.hurry(batch.queue)):
            return  # an answer that dies with the worker would leave its line among the suspects
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
        if batch.entered_whole and (outline := self._engine.outline(requests)) is not None:
            batch.plan(outline)
        refused, request_ids = batch.refuse(refusals)
        self._engine.drop(request_ids)
        self._recorder.put(batch.queue, refused)

    def _claim(self, wanted: Wanted) -> Claim | None:
        with self._database.begin() as session:
            return claim_batch(
                session,
                worker_id=self._worker_id,
                lease_seconds=self._settings.lease_seconds,
                takeover=self._database.is_sqlite,  # the lock says that no other worker lives
                wanted=wanted,
            )

    def _translated(self, batch: RunningBatch, lines: list[PendingLine]) -> Iterator[TranslatedLine]:
        """Raises BlobNotFound."""
        context = TranslationContext(
            self._engine.tokenizer,
            self._engine.max_context,
            self._settings.default_max_tokens,
            self._engine.embedding_size,
            self._engine.normalises,
        )
        with self._storage.open(batch.claim.storage_key) as blob:
            yield from translate_lines(blob, lines, batch.endpoint, context, batch.claim.batch_id)

    def _open(self, claim: Claim) -> _Opened:
        with self._database.read() as session:
            told = get_telemetry(session, claim.batch_id)
            series = None if told is None else told.series
            return _Opened(claim, pending_lines(session, claim.batch_id), series)

    def _record_attempts(self, claim: Claim, lines: Sequence[RunningLine]) -> None:
        with self._database.begin() as session:
            record_attempts(session, claim, (running.line for running in lines))

    def _give_up_guilty(self, claim: Claim) -> None:
        """Answer the lines that killed the worker time and again; others' deaths are explained then."""
        with self._database.begin() as session:
            guilty = [
                line for line in pending_lines(session, claim.batch_id) if line.attempts >= GUILTY_DEATHS
            ]
            if guilty:
                record_results(
                    session, claim, [failure(line, line.attempts, guilty_error(line)) for line in guilty]
                )
                forgive(session, claim, most_deaths=ALONE_DEATHS)
        for line in guilty:
            log.error(
                "Line %d of %s is given up: it ends the worker.",
                line.line,
                claim.batch_id,
                extra={"batch_id": claim.batch_id, "line": line.line, "custom_id": line.custom_id},
            )

    def _fail(self, claim: Claim) -> None:
        """The input is gone from the storage: nobody can ever run this batch."""
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
