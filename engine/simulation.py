"""The planner and the scheduler as they are, driving a runner that only takes time.

Tokens come from given output lengths, seconds from the cost model. What a run did is a `Trace`, one row a
step; the models of rival engines (engine/rivals.py) leave the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.cost_model import CostModel, JobWork, StepWork, shared_work
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.ordering import OrderingPolicy, decode_heavy_first
from engine.planning.plan import Plan
from engine.planning.planner import make_plan
from engine.planning.prefix_tree import build_prefix_tree
from engine.request import Request
from engine.scheduling.batch import StepBatch
from engine.scheduling.scheduler import Scheduler

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
WorkOfStep = Callable[[StepBatch], StepWork]

# Ends a sequence in a simulated run; other tokens are 1.
EOS_TOKEN_ID = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Per step: seconds, num_rows (tokens computed), kv_tokens (KV slots taken, unused ones of a page
    included), shared_kv_tokens (those of shared prefixes). Arrays [num_steps]."""

    seconds: Floats
    num_rows: Ints
    kv_tokens: Ints
    shared_kv_tokens: Ints

    def valley_share(self, num_rows: int) -> float:
        """Share of the steps that compute fewer than `num_rows` tokens."""
        return float((self.num_rows < num_rows).mean()) if len(self.num_rows) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRun:
    """What one policy made of one job.

    num_prompt_tokens: in all prompts that ran.
    num_computed_tokens: prompt tokens computed, each time counted, and outputs computed again.
    num_refused: requests that can never fit.
    """

    trace: Trace
    num_prompt_tokens: int
    num_computed_tokens: int
    num_preemptions: int
    num_refused: int = 0

    @property
    def token_saving(self) -> float:
        """1 - computed / all prompt tokens; 0.0 for an empty job."""
        return 1 - self.num_computed_tokens / self.num_prompt_tokens if self.num_prompt_tokens else 0.0

    @property
    def seconds(self) -> float:
        return float(self.trace.seconds.sum())


class TraceBuilder:
    """Collects a run's steps."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, int, int]] = []

    def add(self, seconds: float, num_rows: int, kv_tokens: int, shared_kv_tokens: int) -> None:
        self._rows.append((seconds, num_rows, kv_tokens, shared_kv_tokens))

    def build(self) -> Trace:
        columns = np.array(self._rows, dtype=np.float64).reshape(-1, 4).T
        num_rows, kv_tokens, shared = columns[1:].astype(np.int64)
        return Trace(columns[0], num_rows, kv_tokens, shared)


def simulate(
    requests: Sequence[Request],
    output_lengths: Sequence[int],
    cost: CostModel,
    *,
    num_pages: int,
    page_size: int,
    max_batch_tokens: int,
    plan: Plan | None = None,
    ordering: OrderingPolicy = decode_heavy_first,
    work_of_step: WorkOfStep = shared_work,
) -> SimulatedRun:
    """Run `requests`, each until it has its output length, at most max_tokens.

    plan: what to run, if not what the planner makes of the requests; ordering: that it was made with.
    work_of_step: how attention reads a step's KV.
    """
    if plan is None:
        plan = make_plan(requests, page_size=page_size, num_pages=num_pages)
    pool = PagePool(num_pages, page_size)
    scheduler = Scheduler(
        pool,
        max_batch_tokens=max_batch_tokens,
        eos_token_ids=frozenset([EOS_TOKEN_ID]),
        lengths=LengthEstimator(),
        ordering=ordering,
    )
    scheduler.add(plan)
    last_token_at = _lengths_by_request(requests, output_lengths)
    trace = TraceBuilder()
    while scheduler.has_work:
        batch = scheduler.next_batch()
        kv_tokens, shared = pool.num_used * page_size, scheduler.num_shared_pages * page_size
        trace.add(cost.step(work_of_step(batch)).total, batch.num_tokens, kv_tokens, shared)
        ends = batch.num_generated + 1 >= last_token_at[batch.request_ids]
        scheduler.commit(batch, np.where(ends, EOS_TOKEN_ID, 1).astype(np.int32))
    return SimulatedRun(
        trace=trace.build(),
        num_prompt_tokens=plan.num_prompt_tokens,
        num_computed_tokens=scheduler.num_computed_prompt_tokens + scheduler.num_recomputed_tokens,
        num_preemptions=scheduler.num_preemptions,
        num_refused=len(plan.refused),
    )


def job_work(requests: Sequence[Request], output_lengths: Sequence[int]) -> JobWork:
    """The least work of a job: unique prompt tokens once, every output token but the last.

    KV is read by the outputs alone, since prompts can be computed in one pass over it: a sequence's own KV
    once for each of its output rows, and a shared segment's as often as the member with the longest output.
    """
    tree = build_prefix_tree([request.prompt_ids for request in requests])
    outputs = np.array([output_lengths[index] for index in tree.prompt], dtype=np.int64)
    above = tree.depth[tree.parent]
    tail_start = tree.depth[tree.leaf_parent]
    tails = tree.length - tail_start
    prompt_pairs = _sum_to(tree.depth) - _sum_to(above)
    tail_pairs = _sum_to(tree.length + outputs - 1) - _sum_to(tail_start)
    decode_rows = outputs - 1
    longest = np.zeros(len(tree.parent), dtype=np.int64)
    np.maximum.at(longest, tree.leaf_parent, decode_rows)
    for node in range(len(longest) - 1, 0, -1):  # preorder: children come after their parent
        longest[tree.parent[node]] = max(longest[tree.parent[node]], longest[node])
    own_reads = _sum_to(tails + decode_rows) - _sum_to(tails)
    return JobWork(
        rows=int(tree.num_unique_tokens + decode_rows.sum()),
        sampled_rows=int(outputs.sum()),
        pairs=int(prompt_pairs.sum() + tail_pairs.sum()),
        kv_reads=int(((tree.depth - above) * longest).sum() + own_reads.sum()),
    )


def _sum_to(count: Ints) -> Ints:
    """1 + 2 + ... + count."""
    return count * (count + 1) // 2


def _lengths_by_request(requests: Sequence[Request], output_lengths: Sequence[int]) -> Ints:
    """Output lengths by request id; ids are small."""
    lengths = np.zeros(max((request.request_id for request in requests), default=0) + 1, dtype=np.int64)
    for request, length in zip(requests, output_lengths, strict=True):
        lengths[request.request_id] = length
    return lengths
