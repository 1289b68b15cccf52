"""What is learned of output lengths, and that order and reservation follow it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.request import Request, SamplingParams
from engine.scheduling.jobs import HALF_BELIEVED
from engine.scheduling.outlook import Outlook
from engine.scheduling.residents import Residents
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence
from tests.engine.planning.requests import request

EOS, OTHER = 0, 1
PAGE_SIZE = 4
TOKENS = np.array([1], dtype=np.int32)


def new_outlook() -> tuple[Outlook, Residents]:
    residents = Residents()
    return Outlook(residents, LengthEstimator(), PAGE_SIZE), residents


def member(outlook: Outlook, parent: Segment | None, max_tokens: int) -> Sequence:
    return Sequence(parent, TOKENS, request(0, [1], max_tokens), job=outlook.join("job"))


def length(outlook: Outlook, sequence: Sequence) -> int:
    return outlook.length(sequence.request.sampling, sequence)


@st.composite
def limits_and_lengths(draw: st.DrawFn) -> tuple[int, list[int]]:
    limit = draw(st.integers(1, 2000))
    return limit, draw(st.lists(st.integers(1, limit), max_size=40))


@given(limits_and_lengths())
def test_a_segment_goes_from_what_is_around_it_to_the_mean_of_its_members(case):
    limit, lengths = case
    outlook, _ = new_outlook()
    root = Segment(None, TOKENS)
    segment = Segment(root, TOKENS)
    before = length(outlook, member(outlook, segment, limit))
    for num_output in lengths:
        outlook.learn(member(outlook, segment, limit), num_output)
    learned = length(outlook, member(outlook, segment, limit))
    assert 1 <= learned <= limit
    if lengths:
        mean = sum(lengths) / len(lengths)
        doubt = HALF_BELIEVED / (len(lengths) + HALF_BELIEVED)
        # The segment around has the same members here, so that two levels of doubt shrink the distance.
        assert abs(learned - mean) <= doubt**2 * abs(before - mean) + 1
    else:
        assert learned == before
    sibling = length(outlook, member(outlook, Segment(root, TOKENS), limit))
    assert min(before, learned) - 1 <= sibling <= max(before, learned) + 1
    known = Sequence(segment, TOKENS, request(1, [1], limit, ignore_eos=True), job=outlook.join("job"))
    assert length(outlook, known) == limit


@given(
    st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 30), st.integers(1, 90)), min_size=1, max_size=6)
)
def test_running_leaves_are_expected_to_take_what_waiting_ones_are(segments):
    outlook, residents = new_outlook()
    above: list[Segment] = []
    for parent, num_ended, num_output in segments:
        above.append(Segment(above[parent] if 0 <= parent < len(above) else None, TOKENS))
        for _ in range(num_ended):
            outlook.learn(member(outlook, above[-1], 100), num_output)
    leaves = [member(outlook, segment, 100) for segment in (*above, None)]
    waiting = [outlook.pages_of(leaf) for leaf in leaves]
    for page, segment in enumerate((*above, *leaves)):
        residents.enter(segment, np.array([page], dtype=np.int32))
    slots = np.array([leaf.slot for leaf in leaves])
    assert outlook.pages_in(slots).tolist() == waiting
    outlook.learn(leaves[0], 100)
    assert outlook.pages_in(slots).tolist() == [outlook.pages_of(leaf) for leaf in leaves]


def test_a_job_is_told_from_others_though_all_of_it_still_runs():
    outlook, residents = new_outlook()
    jobs = np.repeat(["short", "long"], 50)
    leaves = [Sequence(None, TOKENS, request(0, [1], 400), job=outlook.join(job)) for job in jobs.tolist()]
    for page, leaf in enumerate(leaves):
        residents.enter(leaf, np.array([page], dtype=np.int32))
    slots = np.array([leaf.slot for leaf in leaves])
    for step in range(1, 41):
        residents.append_tokens(slots, np.ones(len(slots), dtype=np.int32))
        ended = (jobs == "short") & (step == 5) if step <= 5 else np.zeros(len(slots), dtype=np.bool_)
        outlook.observe(slots, ended)
        slots, jobs = slots[~ended], jobs[~ended]
    short, long = (
        length(outlook, Sequence(None, TOKENS, request(1, [1], 400), job=outlook.join(job)))
        for job in ("short", "long")
    )
    assert short < 20
    assert long > 80


def test_groups_that_wait_are_ordered_and_given_memory_by_what_was_learned():
    """Two prefixes, one with short and one with long outputs; a second job has the short ones first."""
    max_tokens, num_pages = 100, 120
    outputs = {0: 2, 1: 60}
    prefixes = [[7] * 12, [8] * 12]

    def job(first_id: int, size: int) -> list[Request]:
        sampling = SamplingParams(max_tokens=max_tokens)
        return [
            Request(
                first_id + kind * size + number,
                np.array([*prefixes[kind], 10 + first_id + number, 5, 6, 9], dtype=np.int32),
                sampling,
            )
            for kind in (0, 1)
            for number in range(size)
        ]

    first, second = job(0, 40), job(1000, 20)
    kind_of = {one.request_id: int(one.prompt_ids[0] == 8) for one in (*first, *second)}
    scheduler = Scheduler(
        PagePool(num_pages, PAGE_SIZE),
        max_batch_tokens=64,
        eos_token_ids=frozenset([EOS]),
        lengths=LengthEstimator(),
    )
    scheduler.add(make_plan(first, page_size=PAGE_SIZE, num_pages=num_pages), scope="s", job=1)
    branches, alone = scheduler.branches(second, "s")
    assert [kind_of[branch.requests[0].request_id] for branch in branches] == [0, 1]
    assert not alone
    for branch in branches:
        plan = make_plan(
            branch.requests, page_size=PAGE_SIZE, num_pages=branch.num_pages, num_ready=branch.below.stop
        )
        scheduler.add(plan, scope="s", below=branch.below, job=2)
    waiting = [second[0], second[-1]]
    short, long = (scheduler.expected_output_tokens([one]) for one in waiting)
    assert short == long > 30
    order: dict[int, None] = {}
    while scheduler.has_work:
        batch = scheduler.next_batch()
        order.update(dict.fromkeys(batch.request_ids.tolist()))
        if max(order) < 1000:  # none of the second job ran yet
            short, long = (scheduler.expected_output_tokens([one]) for one in waiting)
        lengths = np.array([outputs[kind_of[one]] for one in batch.request_ids.tolist()])
        scheduler.commit(batch, np.where(batch.num_generated + 1 >= lengths, EOS, OTHER).astype(np.int32))
        scheduler.check_invariants()
    assert short < 10
    assert 40 < long < 80
    assert [kind_of[one] for one in order if one >= 1000] == [1] * 20 + [0] * 20
