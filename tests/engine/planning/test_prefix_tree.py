import numpy as np
from hypothesis import given

from engine.planning.prefix_tree import build_prefix_tree
from tests.engine.planning.requests import prompt_lists


def as_arrays(prompts):
    return [np.array(prompt, dtype=np.int32) for prompt in prompts]


def naive_branches(prompts):
    """Prefixes at which prompts part, with their members; a prompt's last token is its own alone."""
    members = {}
    for index, prompt in enumerate(prompts):
        for stop in range(1, len(prompt)):
            members.setdefault(tuple(prompt[:stop]), set()).add(index)

    def parts(prefix, below):
        longer = [members[other] for other in members if other[:-1] == prefix]
        return len(below) >= 2 and below not in longer

    return {(prefix, frozenset(below)) for prefix, below in members.items() if parts(prefix, below)}


@given(prompt_lists())
def test_branch_nodes_are_those_of_a_naive_trie(prompts):
    tree = build_prefix_tree(as_arrays(prompts))
    found = set()
    for node in range(1, len(tree.parent)):
        members = tree.prompt[tree.first_leaf[node] : tree.leaf_stop[node]].tolist()
        found.add((tuple(prompts[members[0]][: tree.depth[node]]), frozenset(members)))
    assert len(found) == len(tree.parent) - 1
    assert found == naive_branches(prompts)


@given(prompt_lists())
def test_nodes_are_in_preorder_under_the_deepest_node_above(prompts):
    tree = build_prefix_tree(as_arrays(prompts))

    def deepest_above(first, stop, depth):
        above = [
            node
            for node in range(len(tree.parent))
            if tree.first_leaf[node] <= first and stop <= tree.leaf_stop[node] and tree.depth[node] < depth
        ]
        return max(above, key=lambda node: tree.depth[node])

    for node in range(1, len(tree.parent)):
        assert tree.parent[node] < node
        first, stop = tree.first_leaf[node], tree.leaf_stop[node]
        assert tree.parent[node] == deepest_above(first, stop, tree.depth[node])
    for leaf in range(len(prompts)):
        assert tree.leaf_parent[leaf] == deepest_above(leaf, leaf + 1, tree.length[leaf])


@given(prompt_lists())
def test_unique_tokens_are_the_nodes_of_a_token_trie(prompts):
    shareable = {tuple(prompt[:stop]) for prompt in prompts for stop in range(1, len(prompt))}
    assert build_prefix_tree(as_arrays(prompts)).num_unique_tokens == len(shareable) + len(prompts)


def test_no_prompts_make_a_root_alone():
    tree = build_prefix_tree([])
    assert tree.num_unique_tokens == 0
    assert len(tree.parent) == 1
