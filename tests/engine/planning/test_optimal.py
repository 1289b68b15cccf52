import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning.optimal import fewest_tokens
from engine.planning.prefix_tree import build_prefix_tree
from tests.engine.planning.requests import prompt_lists


def cost(tree, chosen, overhead):
    """Tokens computed, each segment up to the nearest chosen node above, and the segments' overhead."""

    def start(node):
        while not chosen[node]:
            node = tree.parent[node]
        return tree.depth[node]

    nodes = np.flatnonzero(chosen)[1:]
    shared = sum(tree.depth[node] - start(tree.parent[node]) for node in nodes)
    own = sum(length - start(node) for length, node in zip(tree.length, tree.leaf_parent, strict=True))
    return int(shared + own + overhead * len(nodes))


@settings(max_examples=150)
@given(prompt_lists(), st.integers(0, 9))
def test_the_choice_is_as_cheap_as_the_best_of_all(prompts, overhead):
    tree = build_prefix_tree([np.array(prompt, dtype=np.int32) for prompt in prompts])
    chosen = fewest_tokens(tree, overhead=overhead)
    assert chosen[0]
    best = min(
        cost(tree, np.array((True, *choice)), overhead)
        for choice in itertools.product((False, True), repeat=len(tree.parent) - 1)
    )
    assert cost(tree, chosen, overhead) == best


def test_without_overhead_every_branch_is_shared():
    tree = build_prefix_tree([np.array(prompt, dtype=np.int32) for prompt in ([1, 2, 3], [1, 2, 4], [1, 5])])
    assert fewest_tokens(tree, overhead=0).all()


def test_a_prefix_shorter_than_its_overhead_is_not_shared():
    tree = build_prefix_tree([np.array(prompt, dtype=np.int32) for prompt in ([1, 2, 3], [1, 2, 4])])
    assert not fewest_tokens(tree, overhead=3)[1:].any()


def test_a_long_nested_conversation_is_planned():
    turns = np.arange(3000, dtype=np.int32)
    tree = build_prefix_tree([turns[:stop] for stop in range(2, 3000)])
    chosen = fewest_tokens(tree, overhead=8)
    assert 100 < chosen.sum() < 1000
