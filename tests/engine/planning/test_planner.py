import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.planner import make_plan
from tests.engine.planning.requests import chains, prompt_lists, request

PAGE_SIZES = st.sampled_from([1, 2, 4, 16])


@given(prompt_lists(), PAGE_SIZES)
def test_every_chain_is_its_prompt_and_parents_come_first(prompts, page_size):
    plan = make_plan([request(i, p) for i, p in enumerate(prompts)], page_size=page_size, num_pages=1000)
    assert chains(plan) == dict(enumerate(prompts))
    assert plan.num_prompt_tokens == sum(map(len, prompts))
    assert plan.num_unique_tokens <= plan.num_computed_tokens <= plan.num_prompt_tokens
    path: list[int] = []
    for index, segment in enumerate(plan.segments):
        assert len(segment.token_ids) >= 1
        while path and path[-1] != segment.parent:
            path.pop()
        assert (segment.parent is None) == (not path)
        if segment.request is None:
            path.append(index)


@given(prompt_lists(), st.randoms())
def test_tokens_computed_do_not_depend_on_the_order_of_the_requests(prompts, random):
    requests = [request(i, p) for i, p in enumerate(prompts)]
    shuffled = random.sample(requests, len(requests))
    plans = [make_plan(r, page_size=4, num_pages=1000) for r in (requests, shuffled)]
    first, second = ([s.token_ids.tolist() for s in plan.segments] for plan in plans)
    assert first == second
    assert [s.parent for s in plans[0].segments] == [s.parent for s in plans[1].segments]


@given(prompt_lists(), st.integers(1, 12), PAGE_SIZES)
def test_what_is_planned_fits_alone_and_what_is_refused_does_not(prompts, num_pages, page_size):
    plan = make_plan([request(i, p) for i, p in enumerate(prompts)], page_size=page_size, num_pages=num_pages)
    refused = {refusal.request_id for refusal in plan.refused}
    for i, prompt in enumerate(prompts):
        assert (i in refused) == (-(-(len(prompt) + 3) // page_size) > num_pages)
    assert chains(plan) == {i: prompt for i, prompt in enumerate(prompts) if i not in refused}
    for segment in plan.segments:
        if segment.request is None:
            continue
        pages = -(-(len(segment.token_ids) + 3) // page_size)
        while segment.parent is not None:
            segment = plan.segments[segment.parent]
            pages += -(-len(segment.token_ids) // page_size)
        assert pages <= num_pages


def test_a_chain_that_fits_only_flattened_is_flattened():
    # Shared: 3 + 1 tokens make 2 + 1 pages of two; flat they make 2, with one token of output.
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5]]
    plan = make_plan([request(i, p, max_tokens=1) for i, p in enumerate(prompts)], page_size=2, num_pages=2)
    assert [s.parent for s in plan.segments] == [None, None]
    roomy = make_plan([request(i, p, max_tokens=1) for i, p in enumerate(prompts)], page_size=2, num_pages=3)
    assert [s.parent for s in roomy.segments] == [None, 0, 0]


def test_a_refusal_says_why():
    plan = make_plan([request(7, [1] * 30, max_tokens=10)], page_size=4, num_pages=9)
    assert plan.segments == ()
    assert plan.refused[0].request_id == 7
    assert plan.refused[0].reason == (
        "a prompt of 30 tokens and up to 10 output tokens need 10 KV pages of 4 tokens, and there are 9"
    )


def test_decode_heavy_groups_run_first():
    requests = [request(i, [1] * 20 + [i], max_tokens=1) for i in range(3)]
    requests += [request(10 + i, [2] * 20 + [i], max_tokens=100, ignore_eos=True) for i in range(3)]
    plan = make_plan(requests, page_size=4, num_pages=1000)
    leaves = [s.request.request_id for s in plan.segments if s.request is not None]
    assert leaves[:3] == [10, 11, 12]
    assert np.isclose(plan.token_saving, 1 - (2 * 20 + 6) / (6 * 21))


def test_an_empty_plan():
    plan = make_plan([], page_size=4, num_pages=10)
    assert plan.segments == ()
    assert plan.token_saving == 0.0
