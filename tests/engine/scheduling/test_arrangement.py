"""What waits, arranged anew: nothing is lost, jobs stay in order, and prefixes stay together."""

from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.lengths import LengthEstimator
from engine.planning.ordering import arrival_order, decode_heavy_first
from engine.planning.planner import make_plan
from engine.scheduling.arrangement import Arrangement
from engine.scheduling.outlook import Outlook
from engine.scheduling.residents import Residents
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence
from tests.engine.planning.requests import prompt_lists, request


def above(sequence: Sequence) -> list[Segment]:
    segments = []
    segment = sequence.parent
    while segment is not None:
        segments.append(segment)
        segment = segment.parent
    return segments


@given(st.lists(prompt_lists(), min_size=1, max_size=3), st.data())
def test_jobs_stay_in_order_and_what_shares_stays_together(jobs, data):
    residents = Residents()
    outlook = Outlook(residents, LengthEstimator(), page_size=1)
    waiting: list[Sequence] = []
    for key, prompts in enumerate(jobs):
        requests = [request(i, prompt, data.draw(st.integers(1, 99))) for i, prompt in enumerate(prompts)]
        segments: list[Segment] = []
        for planned in make_plan(requests, page_size=1, num_pages=1000).segments:
            parent = None if planned.parent is None else segments[planned.parent]
            if planned.request is None:
                segments.append(Segment(parent, planned.token_ids))
            else:
                number = outlook.join(key)
                waiting.append(Sequence(parent, planned.token_ids, planned.request, job=number))
                segments.append(waiting[-1])
    for _ in range(data.draw(st.integers(0, 5))):
        outlook.learn(data.draw(st.sampled_from(waiting)), data.draw(st.integers(1, 99)))
    left = waiting[data.draw(st.integers(0, len(waiting) - 1)) :]
    last_group = left[0].parent
    arranged = Arrangement(decode_heavy_first, outlook, residents).arrange(left, last_group)
    assert sorted(map(id, arranged)) == sorted(map(id, left))
    assert [one.job for one in arranged] == [one.job for one in left]
    if last_group is not None:
        assert arranged[0].parent is not None
        assert last_group in above(arranged[0])
    for segment in {segment for one in left for segment in above(one)}:
        runs = [is_below for is_below, _ in groupby(arranged, key=lambda one: segment in above(one))]
        assert runs.count(True) == 1, "a prefix is left and come back to"
    unmoved = Arrangement(arrival_order, outlook, residents).arrange(left, last_group)
    assert list(map(id, unmoved)) == list(map(id, left))


def test_what_decodes_longest_for_its_prompt_goes_first():
    outlook = Outlook(Residents(), LengthEstimator(), page_size=1)
    tokens = np.ones(10, dtype=np.int32)
    groups = [Segment(None, tokens) for _ in range(3)]
    waiting = [
        Sequence(group, tokens, request(0, [1], 100), job=outlook.join(0))
        for group in groups
        for _ in range(2)
    ]
    for group, num_output in zip(groups, (5, 20, 90), strict=True):
        for _ in range(20):
            outlook.learn(Sequence(group, tokens, request(0, [1], 100)), num_output)
    arrangement = Arrangement(decode_heavy_first, outlook, Residents())
    found = [groups.index(one.parent) for one in arrangement.arrange(waiting, None) if one.parent is not None]
    assert found == [2, 2, 1, 1, 0, 0]
    found = [groups.index(one.parent) for one in arrangement.arrange(waiting, groups[0]) if one.parent]
    assert found == [0, 0, 2, 2, 1, 1]
