from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.request import FinishReason, Request, SamplingParams
from engine.scheduling import arrangement
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from tests.engine.planning.requests import prompt_lists, request
from tests.engine.scheduling.fake_model import FakeModel, generate

VOCAB_SIZE = 11
EOS = frozenset({0})


@pytest.fixture(scope="module", autouse=True)
def _arranged_all_the_time() -> Iterator[None]:
    """These jobs are small: what waits in them is arranged anew whenever a sequence has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrangement, "LEAST_ENDED", 1)
        yield


@dataclass
class Job:
    """A scheduler on a fake model, with every invariant checked after every step."""

    num_pages: int
    page_size: int
    max_batch_tokens: int
    expects_short: bool = False
    finished: dict[int, Sequence] = field(default_factory=dict)
    held: dict[int, Request] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    sampled: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = PagePool(self.num_pages, self.page_size)
        self.model = FakeModel(self.num_pages, self.page_size, VOCAB_SIZE)
        lengths = LengthEstimator()
        if self.expects_short:
            # As if many outputs had ended after one token: few pages are set aside, and preemption follows.
            lengths.observe(np.ones(10_000, dtype=np.int32), np.ones(10_000, dtype=np.bool_))
        self.scheduler = Scheduler(
            self.pool,
            max_batch_tokens=self.max_batch_tokens,
            eos_token_ids=EOS,
            lengths=lengths,
        )

    def add(self, requests: list[Request], priority: int = 0, scope: str | None = None) -> None:
        plan = make_plan(requests, page_size=self.page_size, num_pages=self.num_pages)
        refused = {refusal.request_id for refusal in plan.refused}
        self.held |= {r.request_id: r for r in requests if r.request_id not in refused}
        self.scheduler.add(plan, priority=priority, tenant=scope or "", scope=scope)
        self.scheduler.check_invariants()

    def join(self, requests: list[Request], scope: str, priority: int = 0) -> None:
        """As the engine does it: below what is there in the scope, the rest on its own."""
        branches, alone = self.scheduler.branches(requests, scope)
        self.scheduler.check_invariants()
        for branch in branches:
            members, segment = branch.requests, branch.below
            plan = make_plan(
                members, page_size=self.page_size, num_pages=branch.num_pages, num_ready=segment.stop
            )
            refused = {refusal.request_id for refusal in plan.refused}
            alone += [one for one in members if one.request_id in refused]
            self.held |= {one.request_id: one for one in members if one.request_id not in refused}
            self.scheduler.add(plan, priority=priority, tenant=scope, scope=scope, below=segment)
            self.scheduler.check_invariants()
        self.add(alone, priority, scope)

    def drop(self, request_ids: list[int]) -> None:
        self.scheduler.drop(request_ids)
        for request_id in request_ids:
            self.held.pop(request_id, None)
        self.scheduler.check_invariants()

    def step(self, least_priority: int | None = None) -> None:
        batch = self.scheduler.next_batch(least_priority)
        self.sampled.append(batch.request_ids.tolist())
        assert 0 < batch.num_tokens <= self.max_batch_tokens
        self.rows.append(batch.num_tokens)
        for sequence in self.scheduler.commit(batch, self.model.run(batch)):
            request_id = sequence.request.request_id
            assert request_id not in self.finished, "finished twice"
            assert request_id in self.held, "finished after it was dropped"
            self.finished[request_id] = sequence
        self.scheduler.check_invariants()

    def run(self, max_steps: int = 5000) -> None:
        while self.scheduler.has_work:
            assert len(self.rows) < max_steps, "no progress"
            self.step()
        assert self.pool.num_used == 0
        for request_id, sequence in self.finished.items():
            expected = generate(sequence.request, VOCAB_SIZE, EOS)
            assert sequence.output_ids.tolist() == expected, f"request {request_id}"
            ends = expected[-1] in EOS and not sequence.request.sampling.ignore_eos
            assert sequence.finish_reason == (FinishReason.STOP if ends else FinishReason.LENGTH)

    @property
    def outputs(self) -> dict[int, list[int]]:
        return {request_id: sequence.output_ids.tolist() for request_id, sequence in self.finished.items()}


@st.composite
def workloads(draw: st.DrawFn, max_prompts: int = 12) -> list[Request]:
    prompts = draw(prompt_lists(max_prompts))
    limits = [draw(st.integers(1, 12)) for _ in prompts]
    ignores = [draw(st.booleans()) for _ in prompts]
    return [request(i, *args) for i, args in enumerate(zip(prompts, limits, ignores, strict=True))]


def pages_alone(requests: list[Request], page_size: int) -> int:
    return max(-(-(len(r.prompt_ids) + r.sampling.max_tokens - 1) // page_size) for r in requests)


PAGE_SIZES = st.sampled_from([1, 2, 3, 4, 8])


@settings(max_examples=100)
@given(workloads(), PAGE_SIZES, st.integers(0, 12), st.integers(1, 30), st.booleans())
def test_everything_that_fits_alone_finishes_once(
    requests, page_size, spare_pages, max_batch_tokens, expects_short
):
    num_pages = pages_alone(requests, page_size) + spare_pages
    job = Job(num_pages, page_size, max_batch_tokens, expects_short)
    job.add(requests)
    job.run()
    assert job.finished.keys() == {r.request_id for r in requests}


@settings(max_examples=80)
@given(st.data(), PAGE_SIZES, st.integers(6, 30), st.integers(1, 20), st.booleans())
def test_work_comes_and_goes_at_any_moment(data, page_size, num_pages, max_batch_tokens, expects_short):
    job = Job(num_pages, page_size, max_batch_tokens, expects_short)
    for round_ in range(data.draw(st.integers(1, 4))):
        requests = data.draw(workloads(6))
        renamed = [Request(round_ * 100 + r.request_id, r.prompt_ids, r.sampling) for r in requests]
        job.add(renamed, priority=data.draw(st.integers(-2, 2)))
        for _ in range(data.draw(st.integers(0, 6))):
            if job.scheduler.has_work:
                job.step()
        known = sorted(job.held.keys() - job.finished.keys())
        if known:
            job.drop(data.draw(st.lists(st.sampled_from(known), max_size=3)))
    job.run()
    assert job.finished.keys() == job.held.keys()


@settings(max_examples=80)
@given(st.data(), PAGE_SIZES, st.integers(6, 30), st.integers(1, 20), st.booleans())
def test_later_plans_grow_from_earlier_ones_of_their_scope(
    data, page_size, num_pages, max_batch_tokens, expects_short
):
    job = Job(num_pages, page_size, max_batch_tokens, expects_short)
    scope_of: dict[int, str] = {}
    for round_ in range(data.draw(st.integers(2, 6))):
        scope = data.draw(st.sampled_from("ab"))
        requests = data.draw(workloads(6))
        renamed = [Request(round_ * 100 + r.request_id, r.prompt_ids, r.sampling) for r in requests]
        scope_of |= {r.request_id: scope for r in renamed}
        job.join(renamed, scope, priority=data.draw(st.integers(-1, 1)))
        _check_scopes(job, scope_of)
        for _ in range(data.draw(st.integers(0, 6))):
            if job.scheduler.has_work:
                job.step()
        known = sorted(job.held.keys() - job.finished.keys())
        if known:
            job.drop(data.draw(st.lists(st.sampled_from(known), max_size=3)))
    job.run()
    assert job.finished.keys() == job.held.keys()


def _check_scopes(job: Job, scope_of: dict[int, str]) -> None:
    """Nobody of one scope stands below a segment of another, and chains spell prompts."""
    scope_above: dict[object, str] = {}
    for request_id, sequence in job.scheduler._unfinished.items():
        chain, segment = [sequence.token_ids], sequence.parent
        while segment is not None:
            assert scope_above.setdefault(segment, scope_of[request_id]) == scope_of[request_id]
            chain.append(segment.token_ids)
            segment = segment.parent
        assert np.concatenate(chain[::-1]).tolist() == sequence.request.prompt_ids.tolist()


@pytest.mark.parametrize("num_steps", [0, 1, 3, 5])
def test_a_later_prompt_takes_whole_pages_of_a_lone_one(num_steps):
    job = Job(num_pages=40, page_size=4, max_batch_tokens=8)
    job.join([request(0, [*range(20), 100], max_tokens=6, ignore_eos=True)], "a")
    for _ in range(num_steps):
        job.step()
    job.join([request(1, [*range(18), 101, 102], max_tokens=2, ignore_eos=True)], "a")
    job.join([request(2, [*range(18), 101, 102], max_tokens=2, ignore_eos=True)], "b")
    job.run()
    # 16 of the 18 common tokens are whole pages.
    assert job.scheduler.num_computed_prompt_tokens == 21 + 4 + 20
    assert job.finished[1].num_cached_tokens == 16
    assert job.finished[2].num_cached_tokens == 0


@settings(max_examples=30)
@given(workloads(), st.randoms())
def test_outputs_and_tokens_computed_do_not_depend_on_the_order(requests, random):
    jobs = []
    for order in (requests, random.sample(requests, len(requests))):
        job = Job(200, 4, 16)
        job.add(order)
        job.run()
        jobs.append(job)
    assert jobs[0].outputs == jobs[1].outputs
    assert jobs[0].rows == jobs[1].rows


@settings(max_examples=40)
@given(workloads(), st.integers(1, 20))
def test_with_ample_memory_each_token_is_computed_once(requests, max_batch_tokens):
    job = Job(500, 4, max_batch_tokens)
    plan = make_plan(requests, page_size=4, num_pages=500)
    job.add(requests)
    job.run()
    scheduler = job.scheduler
    assert scheduler.num_preemptions == scheduler.num_recomputed_tokens == 0
    assert scheduler.num_computed_prompt_tokens == plan.num_computed_tokens
    num_outputs = sum(len(sequence.output_ids) for sequence in job.finished.values())
    assert sum(job.rows) == plan.num_computed_tokens + num_outputs - len(requests)
    cached = sum(sequence.num_cached_tokens for sequence in job.finished.values())
    assert plan.num_prompt_tokens - cached == plan.num_computed_tokens
    assert scheduler.num_steps == len(job.rows)


@settings(max_examples=60)
@given(workloads(), PAGE_SIZES, st.integers(1, 20), st.booleans())
def test_every_row_is_counted_as_prompt_output_or_recomputed(
    requests, page_size, max_batch_tokens, expects_short
):
    job = Job(pages_alone(requests, page_size), page_size, max_batch_tokens, expects_short)
    job.add(requests)
    job.run()
    decode_rows = sum(len(sequence.output_ids) - 1 for sequence in job.finished.values())
    counted = job.scheduler.num_computed_prompt_tokens + job.scheduler.num_recomputed_tokens + decode_rows
    assert sum(job.rows) == counted
    assert job.scheduler.peak_pages <= job.num_pages


def test_preemption_keeps_what_was_generated_and_evicts_idle_prefixes():
    # Two groups of a 12-token prefix; 20 pages hold one group's prompts and outputs but not both.
    prompts = [[*range(group, group + 12), 90 + member] for group in (20, 50) for member in range(3)]
    # In so large a vocabulary nothing ends early.
    requests = [request(i, prompt, max_tokens=16) for i, prompt in enumerate(prompts)]
    job = Job(20, 4, 64, expects_short=True)
    job.model.vocab_size = 1 << 30
    job.add(requests)
    while job.scheduler.has_work:
        job.step()
    assert job.scheduler.num_preemptions > 0
    assert job.scheduler.num_recomputed_tokens > 0
    for i, sequence in job.finished.items():
        assert sequence.output_ids.tolist() == generate(requests[i], 1 << 30, EOS)
        assert len(sequence.output_ids) == 16
    assert job.pool.num_used == 0


def test_pages_set_aside_and_unwritten_are_taken_before_anybody_is_preempted():
    # The first one sets 11 pages aside at once; the second expects less than the 4 pages it comes to.
    long = request(0, [1, 2, 3, 4], max_tokens=40, ignore_eos=True)
    short = request(1, [5, 6, 7, 8], max_tokens=12)
    job = Job(13, 4, 64, expects_short=True)
    job.model.vocab_size = 1 << 30
    job.add([long, short])
    job.step()
    assert job.pool.num_free == 0
    while job.scheduler.has_work:
        job.step()
    assert job.finished.keys() == {0, 1}
    assert job.scheduler.num_preemptions == 0


def test_a_sequence_runs_in_the_step_that_completes_its_prefix():
    job = Job(100, 4, 64)
    job.add([request(i, [*range(20), 100 + i], max_tokens=2, ignore_eos=True) for i in range(4)])
    job.step()
    assert job.rows == [20 + 4]
    job.step()
    assert job.finished.keys() == set(range(4))
    # The first to run computes the prefix, the others find it.
    assert sorted(sequence.num_cached_tokens for sequence in job.finished.values()) == [0, 20, 20, 20]


def test_prefixes_are_computed_in_chunks_and_decoding_goes_on_beside_them():
    job = Job(100, 4, 8)
    job.add([request(0, [7, 8], max_tokens=30, ignore_eos=True)])
    job.step()
    job.add([request(1 + i, [*range(20), 100 + i], max_tokens=2, ignore_eos=True) for i in range(2)])
    for _ in range(4):
        job.step()
    assert job.rows == [2, 8, 8, 8, 3]


def test_a_prefix_is_freed_with_its_last_member():
    job = Job(100, 4, 64)
    job.add([request(i, [*range(20), 100 + i], max_tokens=1 + i, ignore_eos=True) for i in range(3)])
    job.step()
    job.step()
    assert job.pool.num_used > 5
    job.step()
    assert not job.scheduler.has_work
    assert job.pool.num_used == 0


def test_the_prompt_and_the_expected_output_are_one_run_of_pages():
    job = Job(100, 4, 64)
    job.add([request(i, [10 + i] * 9, max_tokens=20, ignore_eos=True) for i in range(3)])
    batch = job.scheduler.next_batch()
    for start, stop in zip(batch.page_start, batch.page_start[1:], strict=False):
        assert stop - start == 7
        assert (np.diff(batch.page_ids[start:stop]) == 1).all()


def test_a_stop_string_ends_a_sequence():
    job = Job(100, 4, 64)
    job.add([request(i, [5, 6 + i], max_tokens=9, ignore_eos=True) for i in range(2)])
    batch = job.scheduler.next_batch()
    (stopped,) = job.scheduler.commit(batch, job.model.run(batch), stopped=[1])
    assert stopped.request.request_id == 1
    assert stopped.finish_reason == FinishReason.STOP
    assert len(stopped.output_ids) == 1
    job.scheduler.check_invariants()


def test_a_higher_priority_is_admitted_before_all_that_waits():
    job = Job(num_pages=4, page_size=4, max_batch_tokens=4)
    for priority, ids in [(0, (1, 2, 3)), (-1, (4,)), (0, (5,)), (7, (6, 7))]:
        job.add([request(i, [10 + i] * 9, max_tokens=4, ignore_eos=True) for i in ids], priority)
        job.step()  # the first is running when the others come
    job.run()
    assert list(job.finished) == [1, 6, 7, 2, 3, 5, 4]


@settings(max_examples=60)
@given(workloads(), workloads(max_prompts=3), PAGE_SIZES, st.integers(0, 12), st.integers(2, 30), st.data())
def test_steps_for_a_priority_alone_change_no_output(
    requests, urgent, page_size, spare_pages, max_batch_tokens, data
):
    urgent = [Request(1000 + one.request_id, one.prompt_ids, one.sampling) for one in urgent]
    num_pages = pages_alone([*requests, *urgent], page_size) + spare_pages
    job = Job(num_pages, page_size, max_batch_tokens)
    job.join(requests, "a")
    for _ in range(data.draw(st.integers(0, 5))):
        if job.scheduler.has_work:
            job.step()
    job.join(urgent, "a", priority=101)
    for is_alone in data.draw(st.lists(st.booleans(), max_size=20)):
        if job.scheduler.has_work:
            job.step(101 if is_alone else None)
    job.run()
    assert job.finished.keys() == {one.request_id for one in [*requests, *urgent]}


def test_a_step_for_a_priority_alone_has_no_other_rows_and_takes_their_memory():
    job = Job(num_pages=8, page_size=4, max_batch_tokens=64)
    job.add([request(i, [10 + i] * 9, max_tokens=8, ignore_eos=True) for i in range(2)])
    job.step()
    assert job.pool.num_free == 0  # as much as both are expected to need
    job.add([request(9, [1] * 9, max_tokens=3, ignore_eos=True)], priority=101)
    for _ in range(3):
        job.step(101)
    assert job.sampled[1:] == [[9]] * 3
    assert list(job.finished) == [9]
    assert job.scheduler.num_preemptions == 1
    job.step(101)  # none is left: a step of all
    assert job.sampled[-1]
    job.run()


def test_sampling_columns_are_the_requests_own():
    sampling = SamplingParams(max_tokens=3, temperature=0.5, top_p=0.25, seed=2**64 - 1, ignore_eos=True)
    job = Job(100, 4, 64)
    job.add([Request(2**40, np.array([3, 4], dtype=np.int32), sampling)])
    for num_generated in range(3):
        batch = job.scheduler.next_batch()
        assert batch.request_ids.tolist() == [2**40]
        assert (batch.temperature[0], batch.top_p[0]) == (0.5, 0.25)
        assert batch.seeds.tolist() == [2**64 - 1]
        assert batch.num_generated.tolist() == [num_generated]
        job.scheduler.commit(batch, job.model.run(batch))


def test_a_request_may_not_be_added_twice():
    job = Job(100, 4, 64)
    job.add([request(1, [3, 4])])
    with pytest.raises(AssertionError, match="request 1 was added twice"):
        job.add([request(1, [3, 4])])
