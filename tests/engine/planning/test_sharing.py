import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning.planner import make_plan
from engine.planning.prefix_tree import build_prefix_tree
from engine.planning.sharing import share_nothing, share_optimally, share_single_level
from tests.engine.planning.requests import chains, prompt_lists, request

POLICIES = {
    "none": share_nothing,
    "single level": share_single_level,
    "optimal": share_optimally,
}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(prompts=prompt_lists(), page_size=st.sampled_from([1, 2, 4]), num_pages=st.integers(6, 40))
def test_every_policy_keeps_prompts_whole_and_shares_with_at_least_two(policy, prompts, page_size, num_pages):
    requests = [request(index, prompt) for index, prompt in enumerate(prompts)]
    plan = make_plan(requests, page_size=page_size, num_pages=num_pages, sharing=POLICIES[policy])
    refused = {refusal.request_id for refusal in plan.refused}
    expected = {index: prompt for index, prompt in enumerate(prompts) if index not in refused}
    assert chains(plan) == expected
    members = [0] * len(plan.segments)
    for segment in plan.segments:
        parent = segment.parent
        while segment.request is not None and parent is not None:
            members[parent] += 1
            parent = plan.segments[parent].parent
    assert all(
        segment.request is not None or count >= 2
        for segment, count in zip(plan.segments, members, strict=True)
    )


@given(prompt_lists())
def test_nothing_shared_computes_every_token(prompts):
    requests = [request(index, prompt) for index, prompt in enumerate(prompts)]
    plan = make_plan(requests, page_size=2, num_pages=100, sharing=share_nothing)
    assert plan.num_computed_tokens == plan.num_prompt_tokens


@given(prompt_lists(), st.sampled_from([1, 2, 4]))
def test_optimal_is_never_behind_another_policy_by_more_than_its_overhead(prompts, page_size):
    requests = [request(index, prompt) for index, prompt in enumerate(prompts)]

    def cost(policy):
        plan = make_plan(requests, page_size=page_size, num_pages=1000, sharing=policy)
        num_shared = sum(segment.request is None for segment in plan.segments)
        return plan.num_computed_tokens + page_size // 2 * num_shared

    assert all(cost(share_optimally) <= cost(policy) for policy in POLICIES.values())


def _paper_groups(prompts, page_size):
    """The paper's rule read literally, over a trie of explicit tokens: {(prefix, members)}."""
    leaf_of = {}

    def trie(indices, start):
        """[tokens, children, leaves]: an edge ends where prompts part; each keeps its last token."""
        if len(indices) == 1:
            leaf_of[indices[0]] = indices[0]
            return [prompts[indices[0]][start:], [], {indices[0]}]
        end = start
        while all(end < len(prompts[index]) - 1 for index in indices) and (
            len({prompts[index][end] for index in indices}) == 1
        ):
            end += 1
        families = {}
        for index in indices:
            # Who has one token left at `end` is a branch of its own, whatever the token.
            own = len(prompts[index]) - 1 == end
            families.setdefault(("own", index) if own else prompts[index][end], []).append(index)
        children = [trie(family, end) for family in families.values()]
        return [prompts[indices[0]][start:end], children, set(indices)]

    root = trie(list(range(len(prompts))), 0)
    if root[0] or not root[1]:
        root = [[], [root], set(root[2])]

    def enlarge(node):
        for child in node[1]:
            enlarge(child)
        level = []
        for child in node[1]:
            tokens, branches, leaves = child
            kept = []
            for branch in branches:
                if (len(branch[2]) - 1) * len(branch[0]) - len(tokens) > 0:
                    level.append([tokens + branch[0], branch[1], branch[2]])
                    leaves = leaves - branch[2]
                else:
                    kept.append(branch)
            if branches and len(kept) == 1:
                level.append([tokens + kept[0][0], kept[0][1], kept[0][2]])
            elif kept or not branches:
                level.append([tokens, kept, leaves])
        node[1] = level

    enlarge(root)
    groups = set()
    for tokens, _, leaves in root[1]:
        length = len(tokens) // page_size * page_size
        if len(leaves) > 1 and length:
            groups.add((tuple(tokens[:length]), frozenset(leaves)))
    return groups


@settings(max_examples=300)
@given(prompt_lists(), st.sampled_from([1, 2, 3]))
def test_single_level_is_the_papers_rule(prompts, page_size):
    tree = build_prefix_tree([np.array(prompt, dtype=np.int32) for prompt in prompts])
    segmentation = share_single_level(tree, page_size)
    groups = {}
    for leaf, node in enumerate(segmentation.leaf_around.tolist()):
        if node:
            groups.setdefault(node, []).append(int(tree.prompt[leaf]))
    found = {
        (tuple(prompts[members[0]][: segmentation.stop[node]]), frozenset(members))
        for node, members in groups.items()
        if len(members) > 1
    }
    assert found == _paper_groups(prompts, page_size)
