"""Models of the rivals: a streaming engine with a hash-block prefix cache, and one with a radix cache.

They run the same job on the same cost model and leave the same trace as our own simulated run. Attention
reads each request's whole KV for itself, as their kernels do.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.cost_model import CostModel, StepWork
from engine.prefix_cache import Entry, PrefixCache
from engine.request import Request
from engine.simulation import SimulatedRun, TraceBuilder

# Where the numbers come from:
#   Block size 16, gpu_memory_utilization 0.9, max_num_seqs 256: vLLM 0.6.4's defaults; a watermark of 1 % of
#   the blocks stays free at admission. Chunked prefill with 2,048 tokens a step: the default was 512 until
#   then ("not optimized for throughput", says its own comment) and 2,048 from the next release on.
#   1024 sequences and 8,192 tokens: vLLM v1's defaults for offline use (the former on large cards). There
#   blocks can be hit from the moment they are scheduled, within the same step too (in 0.6.4 from the next),
#   and one attention call takes prefill chunks and decode rows.
#   SGLang 0.4.1: chunked_prefill_size 8192, mem_fraction_static 0.88, longest prefix match switched off
#   above 128 waiting; expected share of max_tokens 0.7, falling to 0.1 over 600 decode steps.
UTILIZATION = 0.9
RADIX_UTILIZATION = 0.88
WATERMARK = 0.01
LPM_LIMIT = 128
RATIO_START, RATIO_END, RATIO_STEPS = 0.7, 0.098, 600


@dataclass(slots=True, eq=False)
class _Running:
    chain: list[Entry]
    prompt_tokens: int
    output_tokens: int
    index: int
    num_computed: int = 0
    num_generated: int = 0

    @property
    def target(self) -> int:
        """Tokens to compute before it decodes: the prompt, and outputs from before a preemption."""
        return self.prompt_tokens + self.num_generated


@dataclass(slots=True)
class _Step:
    """What a step computes: (rows, keys) of each request's item."""

    rows: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    num_sampled: int = 0

    def work(self, one_launch: bool) -> StepWork:
        rows = np.array(self.rows, dtype=np.int64)
        keys = np.array(self.keys, dtype=np.int64)
        pairs = rows * keys - rows * (rows - 1) // 2
        # Prefill chunks and decode rows were two kernels before they became one call over both.
        launch = np.zeros_like(rows) if one_launch else (rows > 1).astype(np.int64)
        return StepWork(int(rows.sum()), self.num_sampled, rows, keys, pairs, launch)


class _Engine:
    """What both rivals share: running requests, prefill chunks, decode rows, preemption of the latest."""

    def __init__(
        self,
        requests: Sequence[Request],
        output_lengths: Sequence[int],
        cost: CostModel,
        cache: PrefixCache,
        max_batch_tokens: int,
        num_usable_blocks: int,
        is_v1: bool = False,
    ) -> None:
        self.cost = cost
        self.cache = cache
        self.max_batch_tokens = max_batch_tokens
        self.is_v1 = is_v1
        self.waiting = deque(
            _Running(chain, len(request.prompt_ids), output, index)
            for index, (request, output, chain) in enumerate(
                zip(requests, output_lengths, cache.chains, strict=True)
            )
            # What does not fit alone is refused.
            if -(-(len(request.prompt_ids) + output - 1) // cache.block_size) <= num_usable_blocks
        )
        self.num_refused = len(requests) - len(self.waiting)
        self.running: list[_Running] = []
        self.num_computed = 0
        self.num_preemptions = 0
        self.trace = TraceBuilder()
        self.num_prompt_tokens = sum(request.prompt_tokens for request in self.waiting)

    def run(self) -> SimulatedRun:
        while self.waiting or self.running:
            step = self.next_step()
            assert step.rows, f"{len(self.waiting)} requests wait and none fits"
            size = self.cache.block_size
            seconds = self.cost.step(step.work(one_launch=self.is_v1)).total
            used, shared = self.cache.num_used * size, self.cache.num_shared_cached * size
            self.trace.add(seconds, sum(step.rows), used, shared)
            self.commit()
        return SimulatedRun(
            self.trace.build(),
            self.num_prompt_tokens,
            self.num_computed,
            self.num_preemptions,
            self.num_refused,
        )

    def next_step(self) -> _Step:
        raise NotImplementedError

    def admit(self, request: _Running) -> None:
        """Its cached blocks count as computed; the last token never does."""
        hit = self.cache.num_hit(request.chain) * self.cache.block_size
        request.num_computed = min(hit, request.target - 1)
        self.cache.acquire(request.chain)
        while request.chain[-1].num_cached * self.cache.block_size < self._leaf_tokens(request):
            self.cache.grow(request.chain[-1])
        self.running.append(request)

    def prefill(self, step: _Step, request: _Running, num_rows: int) -> int:
        """Up to `num_rows` prompt rows of a running request. Returns how many."""
        num_rows = min(num_rows, request.target - request.num_computed)
        request.num_computed += num_rows
        # After a preemption the row of the last known token is the decode row that was due.
        is_last = request.num_computed == request.target
        self.num_computed += num_rows - (is_last and request.num_generated > 0)
        if self.is_v1:
            self.cache.mark_computed(request.chain, request.num_computed)
        step.rows.append(num_rows)
        step.keys.append(request.num_computed)
        step.num_sampled += is_last
        return num_rows

    def decode(self, step: _Step) -> int:
        """A row of every request that decodes; the latest give way when blocks run out. Returns the rows."""
        num_rows = 0
        for request in [request for request in self.running if self.is_decoding(request)]:
            if request.num_computed < 0:
                continue  # preempted just now
            if request.chain[-1].num_cached * self.cache.block_size < self._leaf_tokens(request) and (
                not self._grow(request)
            ):
                continue
            step.rows.append(1)
            request.num_computed += 1
            step.keys.append(request.num_computed)
            num_rows += 1
        step.num_sampled += num_rows
        return num_rows

    def is_decoding(self, request: _Running) -> bool:
        return request.num_generated > 0 and request.num_computed == request.target - 1

    def commit(self) -> None:
        for request in self.running:
            self.cache.mark_computed(request.chain, request.num_computed)
            if request.num_computed == request.target:
                request.num_generated += 1
        done = [request for request in self.running if request.num_generated >= request.output_tokens]
        for request in done:
            self.cache.release(request.chain)
        if done:
            self.running = [
                request for request in self.running if request.num_generated < request.output_tokens
            ]

    def output_blocks(self, request: _Running) -> int:
        """Blocks that a preempted request needs beside its prompt's and what is left of its output."""
        leaf = request.chain[-1]
        needed = -(-self._leaf_tokens(request) // self.cache.block_size)
        return max(needed - max(leaf.num_cached, leaf.num_blocks), 0)

    def _leaf_tokens(self, request: _Running) -> int:
        """Tokens of the request that its own leaf holds, the one to be computed next included."""
        above = sum(entry.num_blocks for entry in request.chain[:-1]) * self.cache.block_size
        return request.target - above

    def _grow(self, request: _Running) -> bool:
        while not self.cache.grow(request.chain[-1]):
            latest = self.running.pop()
            self.cache.release(latest.chain)
            latest.num_computed = -1
            self.waiting.appendleft(latest)
            self.num_preemptions += 1
            if latest is request:
                return False
        return True


class StreamingEngine(_Engine):
    """First come, first served: decode rows, then running prefill chunks, then admissions (vLLM)."""

    def __init__(
        self,
        requests: Sequence[Request],
        output_lengths: Sequence[int],
        cost: CostModel,
        *,
        max_seqs: int,
        max_batch_tokens: int,
        is_v1: bool = False,
        kv_memory_bytes: int | None = None,
    ) -> None:
        memory = kv_memory_bytes or cost.kv_memory_bytes(
            max_batch_tokens=max_batch_tokens, max_sampled=max_seqs, utilization=UTILIZATION
        )
        num_blocks = memory // (16 * cost.kv_bytes_per_token)
        cache = PrefixCache(requests, num_blocks=num_blocks, block_size=16, whole_entries=False)
        self._max_seqs = max_seqs
        self._watermark = int(num_blocks * WATERMARK)
        usable = num_blocks - self._watermark
        super().__init__(requests, output_lengths, cost, cache, max_batch_tokens, usable, is_v1)

    def next_step(self) -> _Step:
        step = _Step()
        left = self.max_batch_tokens - self.decode(step)
        for request in self.running:
            if left and 0 <= request.num_computed < request.target and not self.is_decoding(request):
                left -= self.prefill(step, request, left)
        while left and self.waiting and len(self.running) < self._max_seqs:
            extra = self.output_blocks(self.waiting[0])
            if not self.cache.can_hold(self.waiting[0].chain, extra + self._watermark):
                break
            self.admit(self.waiting.popleft())
            left -= self.prefill(step, self.running[-1], left)
        return step


class RadixEngine(_Engine):
    """Prefill first, whole steps of it, decode when nothing more fits; the longest cached prefix first while
    at most 128 wait (SGLang)."""

    def __init__(
        self,
        requests: Sequence[Request],
        output_lengths: Sequence[int],
        cost: CostModel,
        *,
        max_batch_tokens: int = 8192,
        kv_memory_bytes: int | None = None,
    ) -> None:
        memory = kv_memory_bytes or cost.kv_memory_bytes(
            max_batch_tokens=max_batch_tokens, max_sampled=256, utilization=RADIX_UTILIZATION
        )
        num_tokens = memory // cost.kv_bytes_per_token
        cache = PrefixCache(requests, num_blocks=num_tokens, block_size=1, whole_entries=True)
        super().__init__(requests, output_lengths, cost, cache, max_batch_tokens, num_tokens)
        self._num_decode_steps = 0

    def next_step(self) -> _Step:
        step = _Step()
        left = self.max_batch_tokens
        for request in self.running:
            if left and not self.is_decoding(request) and request.num_computed < request.target:
                left -= self.prefill(step, request, left)
        if len(self.waiting) <= LPM_LIMIT:
            self._longest_match_first()
        while left and self.waiting and self._fits(self.waiting[0]):
            self.admit(self.waiting.popleft())
            left -= self.prefill(step, self.running[-1], left)
        if not step.rows:
            self.decode(step)
            self._num_decode_steps += 1
        return step

    def _longest_match_first(self) -> None:
        """Of requests that share an uncached prefix the first goes before, and the others wait for its KV."""
        matched = {request.index: self.cache.num_hit(request.chain) for request in self.waiting}
        pioneers: set[int] = set()

        def rank(request: _Running) -> tuple[bool, int]:
            first = request.chain[0]
            if matched[request.index] > 32 or first.is_leaf or first.num_blocks < 32:
                return False, -matched[request.index]
            follows = id(first) in pioneers
            pioneers.add(id(first))
            return follows, -matched[request.index]

        self.waiting = deque(sorted(self.waiting, key=rank))

    def _fits(self, request: _Running) -> bool:
        """Prompt and its whole output, beside the expected rest of what runs."""
        done = min(self._num_decode_steps / RATIO_STEPS, 1.0)
        ratio = RATIO_START + (RATIO_END - RATIO_START) * done
        expected = sum(other.output_tokens - other.num_generated for other in self.running)
        extra = request.output_tokens + int(expected * ratio)
        return self.cache.can_hold(request.chain, extra) or not self.running
