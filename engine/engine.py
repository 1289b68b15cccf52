"""The engine: a loop that work can join and leave between steps."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.memory.pages import PagePool
from engine.planning.outline import Outline, outline_of
from engine.planning.plan import Plan
from engine.planning.planner import make_plan
from engine.request import Completion, FinishReason, Refusal, Request, TokenLogprob
from engine.scheduling.batch import RowLogprobs, StepBatch, StepTokens
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence as RunningSequence
from engine.stats import EngineLoad, EngineStats
from engine.text.logprobs import token_logprobs
from engine.text.masks import TokenMasker
from engine.text.stopping import StopWatcher
from engine.text.tokenizer import Tokenizer

RunStep = Callable[[StepBatch], StepTokens]


class Engine:
    """Plans what it is given, then computes it step by step.

    run_step: computes a step and returns the next token of each sampled row.
    max_context: most tokens a prompt and its output may have together: the model's limit, or what KV
        memory leaves of it.
    page_bytes: KV bytes of one page over all layers.
    """

    embedding_size: int | None = None  # it generates
    normalises = False

    def __init__(
        self,
        *,
        run_step: RunStep,
        scheduler: Scheduler,
        pool: PagePool,
        tokenizer: Tokenizer,
        max_context: int,
        page_bytes: int,
        load_seconds: float = 0.0,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_context = max_context
        self._run_step = run_step
        self._scheduler = scheduler
        self._pool = pool
        self._page_bytes = page_bytes
        self._step_tokens = 0
        self._num_jobs = 0
        self._watchers: dict[int, StopWatcher] = {}
        self._logprobs: defaultdict[int, list[RowLogprobs]] = defaultdict(list)  # of requests that ask
        self._stats = EngineStats(
            load_seconds=load_seconds, kv_capacity_tokens=pool.num_pages * pool.page_size
        )
        self._masker = TokenMasker(lambda: tokenizer.grammars)

    def add(
        self,
        requests: Sequence[Request],
        *,
        priority: int = 0,
        tenant: str = "",
        scope: Hashable = None,
    ) -> list[Refusal]:
        """Plan these requests together and let them join; those that can never fit come back.

        Those of a higher priority go first, also before what waits here already; tenants of equal priority
        have equal shares. Prefixes are shared among the requests of the call and with those of earlier calls
        with the same `scope` that are not finished; None: with no other call. The outputs of one call are
        expected to be alike in length.
        """
        started = time.perf_counter()
        self._num_jobs += 1
        alone = requests if scope is None else self._join(requests, priority, tenant, scope)
        plan = self._plan(alone)
        self._enter(plan, priority, tenant, scope, below=None)
        self._stats.plan_seconds += time.perf_counter() - started
        return list(plan.refused)

    def _plan(self, requests: Sequence[Request]) -> Plan:
        return make_plan(requests, page_size=self._pool.page_size, num_pages=self._pool.num_pages)

    def _join(
        self, requests: Sequence[Request], priority: int, tenant: str, scope: Hashable
    ) -> Sequence[Request]:
        """Lets requests grow from segments that are here already. Returns those that cannot."""
        branches, alone = self._scheduler.branches(requests, scope)
        for branch in branches:
            plan = make_plan(
                branch.requests,
                page_size=self._pool.page_size,
                num_pages=branch.num_pages,
                num_ready=branch.below.stop,
            )
            self._enter(plan, priority, tenant, scope, below=branch.below)
            unfit = {refusal.request_id for refusal in plan.refused}  # the chain is cut into too many pages
            alone += [request for request in branch.requests if request.request_id in unfit]
        return alone

    def _enter(self, plan: Plan, priority: int, tenant: str, scope: Hashable, below: Segment | None) -> None:
        self._scheduler.add(
            plan, priority=priority, tenant=tenant, scope=scope, below=below, job=self._num_jobs
        )
        self._stats.prompt_tokens += plan.num_prompt_tokens
        self._watch(plan)

    def outline(self, requests: Sequence[Request]) -> Outline:
        """What these requests share among themselves, whatever is here beside them."""
        return outline_of(self._plan(requests), self.tokenizer.decode)

    def drop(self, request_ids: Collection[int]) -> None:
        """Take requests out, finished or not, and free what only they used."""
        self._scheduler.drop(request_ids)
        for request_id in request_ids:
            self._watchers.pop(request_id, None)
            self._logprobs.pop(request_id, None)
            self._masker.end(request_id)

    def expected_output_tokens(self, requests: Sequence[Request]) -> int:
        """How long all their outputs will be together, by what was learned so far; they need not be here."""
        return self._scheduler.expected_output_tokens(requests)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def running_ids(self) -> frozenset[int]:
        """Requests that have KV pages now."""
        return self._scheduler.running_ids

    def step(self, least_priority: int | None = None) -> list[Completion]:
        """Compute one step; the requests that it finished.

        least_priority: it is for requests of this priority and above alone, if any of them can go on.
        """
        batch = self._masker.begin(self._scheduler.next_batch(least_priority))
        self._stats.computed_tokens += batch.num_tokens
        self._stats.kv_tokens = self._pool.num_used * self._pool.page_size
        self._stats.shared_kv_tokens = self._scheduler.num_shared_pages * self._pool.page_size
        tokens = self._run_step(batch)
        self._step_tokens = batch.num_tokens
        token_ids = tokens.token_ids
        for row in tokens.logprobs:
            self._logprobs[int(batch.request_ids[row.index])].append(row)
        stopped = self._stopped(batch.request_ids, token_ids)
        return [self._complete(sequence) for sequence in self._scheduler.commit(batch, token_ids, stopped)]

    @property
    def stats(self) -> EngineStats:
        """As of the last step."""
        scheduler, stats = self._scheduler, self._stats
        stats.computed_prompt_tokens = scheduler.num_computed_prompt_tokens
        stats.recomputed_tokens = scheduler.num_recomputed_tokens
        stats.steps = scheduler.num_steps
        stats.preemptions = scheduler.num_preemptions
        stats.peak_kv_bytes = scheduler.peak_pages * self._page_bytes
        return stats

    @property
    def load(self) -> EngineLoad:
        pool, page_bytes = self._pool, self._page_bytes
        return EngineLoad(self._step_tokens, pool.num_pages * page_bytes, pool.num_used * page_bytes)

    def _watch(self, plan: Plan) -> None:
        requests: Iterable[Request | None] = (segment.request for segment in plan.segments)
        for request in requests:
            if request is not None and (request.sampling.stop or request.sampling.stop_token_ids):
                self._watchers[request.request_id] = StopWatcher(self.tokenizer, request.sampling)

    def _stopped(self, request_ids: NDArray[np.int64], token_ids: NDArray[np.int32]) -> list[int]:
        """Requests that a stop string or stop token ends now."""
        if not self._watchers:
            return []
        sampled = zip(request_ids.tolist(), token_ids.tolist(), strict=True)
        watched = ((id_, self._watchers.get(id_), token_id) for id_, token_id in sampled)
        return [id_ for id_, watcher, token_id in watched if watcher is not None and watcher.push(token_id)]

    def _complete(self, sequence: RunningSequence) -> Completion:
        request, output_ids, finish_reason = sequence.request, sequence.output_ids, sequence.finish_reason
        assert finish_reason is not None, f"request {request.request_id} was returned unfinished"
        watcher = self._watchers.pop(request.request_id, None)
        ends_by_token = watcher is not None and watcher.ends_by_token(output_ids)
        text = self.tokenizer.decode(output_ids[:-1] if ends_by_token else output_ids)
        cut = text if watcher is None else watcher.cut(text)
        logprobs = self._describe(sequence, num_characters=len(cut) if cut != text else None)
        if cut != text:
            # "length" so far where an open character at the very end hid the stop string from the watcher
            finish_reason = FinishReason.STOP
        self._stats.output_tokens += len(output_ids)
        return Completion(
            request_id=request.request_id,
            output_ids=output_ids,
            text=cut,
            finish_reason=finish_reason,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=sequence.num_cached_tokens,
            logprobs=logprobs,
            failure=self._masker.end(request.request_id),
        )

    def _describe(
        self, sequence: RunningSequence, num_characters: int | None
    ) -> tuple[TokenLogprob, ...] | None:
        """Of a finished sequence. num_characters: of its text before a stop string, if one cut it."""
        request = sequence.request
        if request.sampling.top_logprobs is None:
            return None
        tokens = token_logprobs(self.tokenizer, sequence.output_ids, self._logprobs.pop(request.request_id))
        if num_characters is not None:
            return tuple(token for token in tokens if token.offset < num_characters)
        return tokens[:-1] if sequence.finish_reason is FinishReason.STOP else tokens
