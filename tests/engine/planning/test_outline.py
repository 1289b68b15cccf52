"""An outline adds up to its plan, whatever it leaves out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.planning import outline as outline_module
from engine.planning.outline import Members, outline_of
from engine.planning.planner import make_plan
from tests.engine.planning.requests import prompt_lists, request


def decode(token_ids):
    return " ".join(map(str, token_ids))


@given(prompt_lists(max_prompts=30), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 3, 40]))
def test_it_adds_up(prompts, page_size, max_prefixes):
    plan = make_plan([request(i, p) for i, p in enumerate(prompts)], page_size=page_size, num_pages=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline_module, "MAX_PREFIXES", max_prefixes)
        outline = outline_of(plan, decode)
    assert len(outline.prefixes) <= max_prefixes
    members = [outline.roots, *(prefix.members for prefix in outline.prefixes)]
    assert outline.num_requests == len(prompts)
    assert sum(m.num_tails + m.other_requests for m in members) == len(prompts)
    computed = sum(p.num_tokens for p in outline.prefixes)
    computed += sum(m.tail_tokens + m.other_tokens for m in members)
    assert computed == outline.num_computed_tokens == plan.num_computed_tokens
    num_inner = sum(segment.request is None for segment in plan.segments)
    assert outline.num_prefixes == num_inner >= len(outline.prefixes)
    if max_prefixes == 40:
        assert len(outline.prefixes) == num_inner
    for index, prefix in enumerate(outline.prefixes):
        above = None if prefix.parent is None else outline.prefixes[prefix.parent]
        assert prefix.parent is None or prefix.parent < index
        assert prefix.start == (above.start + above.num_tokens if above else 0)
        stop = prefix.start + prefix.num_tokens
        with_it = [
            i
            for i in prefix.request_ids
            if decode(prompts[i][prefix.start : stop][:32]).startswith(prefix.text)
        ]
        assert list(prefix.request_ids) == with_it
        assert min(prefix.num_requests, 5) == len(prefix.request_ids) >= 2


def test_the_example_of_the_module():
    prefix, inner = list(range(40)), list(range(100, 109))
    prompts = [[*prefix, *inner, 200 + i, 1] for i in range(3)] + [
        [*prefix, 300 + i, 1, 2, 3] for i in (0, 1)
    ]
    plan = make_plan([request(i, p) for i, p in enumerate(prompts)], page_size=1, num_pages=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline_module, "MAX_PREFIXES", 1)
        outline = outline_of(plan, decode)
    (only,) = outline.prefixes
    assert (only.num_tokens, only.num_requests) == (40, 5)
    assert only.members == Members(2, 8, 1, 3, 9 + 6)
    assert (outline.num_prefixes, outline.num_levels) == (2, 2)
    assert outline.roots == Members(0, 0, 0, 0, 0)


def test_an_empty_plan():
    outline = outline_of(make_plan([], page_size=4, num_pages=10), decode)
    assert (outline.prefixes, outline.num_requests, outline.num_levels) == ((), 0, 0)


def test_the_largest_of_many_groups_are_listed():
    prompts = [[*([group] * (10 + group)), 1, tail] for group in range(2, 302) for tail in (5, 6)]
    plan = make_plan([request(i, p) for i, p in enumerate(prompts)], page_size=1, num_pages=10_000)
    outline = outline_of(plan, lambda token_ids: str(token_ids[0]))
    assert len(outline.prefixes) == outline_module.MAX_PREFIXES
    assert {int(prefix.text) for prefix in outline.prefixes} == set(range(262, 302))
    assert outline.roots.num_others == 260
    assert np.sum([prefix.num_requests for prefix in outline.prefixes]) == 80
