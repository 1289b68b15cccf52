"""Random prompts that share prefixes, for hypothesis."""

import numpy as np
from hypothesis import strategies as st

from engine.planning.plan import Plan
from engine.request import Request, SamplingParams


def request(request_id: int, prompt: list[int], max_tokens: int = 4, ignore_eos: bool = False) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
    return Request(request_id, np.array(prompt, dtype=np.int32), sampling)


@st.composite
def prompt_lists(draw: st.DrawFn, max_prompts: int = 12) -> list[list[int]]:
    """Prompts made by extending each other: branches, duplicates and prompts that are prefixes of others."""
    # The large token differs from 1 in its second byte only, so that byte order is not token order.
    tokens = st.lists(st.sampled_from([1, 2, 257]), min_size=1, max_size=8)
    prompts: list[list[int]] = []
    for _ in range(draw(st.integers(1, max_prompts))):
        start: list[int] = []
        if prompts and draw(st.booleans()):
            base = draw(st.sampled_from(prompts))
            start = base[: draw(st.integers(0, len(base)))]
        own = draw(tokens) if not start or draw(st.booleans()) else []
        prompts.append(start + own)
    return prompts


def chains(plan: Plan) -> dict[int, list[int]]:
    """Per request the tokens along its chain of segments."""
    found = {}
    for segment in plan.segments:
        if segment.request is None:
            continue
        tokens = segment.token_ids.tolist()
        parent = segment.parent
        while parent is not None:
            tokens = plan.segments[parent].token_ids.tolist() + tokens
            parent = plan.segments[parent].parent
        assert segment.request.request_id not in found
        found[segment.request.request_id] = tokens
    return found
