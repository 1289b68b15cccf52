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
    arrival: a leaf's place in the caller's list; beyond all of them for shared segments.
    """

    parent: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    arrival: Ints


OrderingPolicy = Callable[[Forest], Keys]


def decode_heavy_first(forest: Forest) -> Keys:
    """By R = expected output tokens / prompt tokens to compute, both over the subtree, descending: what
    decodes long starts while there is still prefill to mix with its decode steps."""
    output = sums_of_subtrees(forest.parent, forest.output_tokens)
    ratio: NDArray[np.float64] = output / np.maximum(sums_of_subtrees(forest.parent, forest.prompt_tokens), 1)
    return -ratio


def arrival_order(forest: Forest) -> Keys:
    """By the earliest request below. Never ahead by more than chance (benchmarks/LOG.md): for ablation."""
    earliest = forest.arrival.copy()
    for nodes in reversed(levels(forest.parent)[1:]):
        np.minimum.at(earliest, forest.parent[nodes], earliest[nodes])
    return earliest


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
