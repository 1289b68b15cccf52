"""The order in which a plan's segments run: always depth first; a policy says which sibling goes first.

A policy is a function Forest -> keys, ascending; equal keys keep the order of the nodes, which is the tree's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.planning.forest import Ints, levels, sums_of_subtrees, sums_to_root

Keys = NDArray[np.float64] | Ints


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Segments and leaves as nodes below node 0, each column [M].

    parent: 0 for the top nodes.
    prompt_tokens: each node's own, at least one below node 0.
    output_tokens: those a leaf is expected to generate; 0 for shared segments.
    is_leaf: whether the node is a request's own.
    arrival: a leaf's place in the caller's list; beyond all of them for shared segments.
    tree_order: place of the node's first prompt among all prompts, sorted by their tokens.
    """

    parent: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    is_leaf: NDArray[np.bool_]
    arrival: Ints
    tree_order: Ints


OrderingPolicy = Callable[[Forest], Keys]


def decode_heavy_first(forest: Forest) -> Keys:
    """By R = expected output tokens / prompt tokens to compute, both over the subtree, descending: what
    decodes long starts while there is still prefill to mix with its decode steps."""
    output = sums_of_subtrees(forest.parent, forest.output_tokens)
    return -_per_prompt_token(forest, output)


def many_outputs_first(forest: Forest) -> Keys:
    """By R where every output counts as one token, as BatchLLM has it (arXiv 2412.03594)."""
    return -_per_prompt_token(forest, sums_of_subtrees(forest.parent, forest.is_leaf.astype(np.int64)))


def arrival_order(forest: Forest) -> Keys:
    """By the earliest request below."""
    earliest = forest.arrival.copy()
    for nodes in reversed(levels(forest.parent)[1:]):
        np.minimum.at(earliest, forest.parent[nodes], earliest[nodes])
    return earliest


def sorted_order(forest: Forest) -> Keys:
    """By the tokens: a depth-first walk of the prefix tree."""
    return forest.tree_order


def density_from_both_ends(forest: Forest) -> Keys:
    """Compute-heavy and memory-heavy top subtrees by turns, so that what has been started so far keeps the
    job's own mix of the two (after BlendServe, arXiv 2411.16102)."""
    outputs = forest.output_tokens
    compute = sums_of_subtrees(forest.parent, forest.prompt_tokens + outputs).astype(np.float64)
    # Each output token reads its own prompt and what was generated before it.
    reads = sums_of_subtrees(forest.parent, outputs * (forest.prompt_tokens + outputs // 2))
    top = np.flatnonzero(forest.parent == 0)[1:]
    by_density = top[np.argsort(-compute[top] / np.maximum(reads[top], 1), kind="stable")].tolist()
    keys = np.zeros(len(forest.parent), dtype=np.int64)
    compute_left, reads_left = float(compute[top].sum()), float(reads[top].sum())
    mix = compute_left / max(reads_left, 1.0)
    started_compute = started_reads = 0.0
    first, last = 0, len(by_density) - 1
    for place in range(len(by_density)):
        if started_compute <= mix * started_reads:
            node, first = by_density[first], first + 1
        else:
            node, last = by_density[last], last - 1
        keys[node] = place
        started_compute += compute[node]
        started_reads += reads[node]
    return keys


def preorder(parent: Ints, keys: Keys) -> Ints:
    """int64 [M - 1]: places 0 .. M - 2 of the nodes 1 .. M - 1 in depth-first preorder, siblings by ascending
    key."""
    num_nodes = sums_of_subtrees(parent, np.ones_like(parent))
    siblings = 1 + np.lexsort((keys[1:], parent[1:]))
    # Nodes that stand before each one: its earlier siblings' subtrees, and its parent.
    before = np.cumsum(num_nodes[siblings]) - num_nodes[siblings]
    _, family_start, family_size = np.unique(parent[siblings], return_index=True, return_counts=True)
    before -= np.repeat(before[family_start], family_size)
    step = np.zeros_like(parent)
    step[siblings] = before + 1
    return sums_to_root(parent, step)[1:] - 1


def _per_prompt_token(forest: Forest, values: Ints) -> NDArray[np.float64]:
    prompt = np.maximum(sums_of_subtrees(forest.parent, forest.prompt_tokens), 1)
    ratio: NDArray[np.float64] = values / prompt
    return ratio
