"""The order in which a plan's segments run: depth first, decode-heavy subtrees before their siblings."""

import numpy as np

from engine.planning.forest import Ints, sums_of_subtrees, sums_to_root


def decode_heavy_first(parent: Ints, prompt_tokens: Ints, output_tokens: Ints) -> Ints:
    """The place of every node below node 0 in depth-first preorder.

    Siblings go by R = expected output tokens / prompt tokens to compute, both over the subtree, descending:
    what decodes long starts while there is still prefill to mix with its decode steps. Ties keep the order
    of the nodes.

    parent: int64 [M], 0 for the top nodes.
    prompt_tokens, output_tokens: int64 [M], each node's own, at least one prompt token.
    Returns: int64 [M - 1], places 0 .. M - 2 of the nodes 1 .. M - 1.
    """
    ratio = sums_of_subtrees(parent, output_tokens)[1:] / sums_of_subtrees(parent, prompt_tokens)[1:]
    num_nodes = sums_of_subtrees(parent, np.ones_like(parent))
    siblings = 1 + np.lexsort((-ratio, parent[1:]))
    # Nodes that stand before each one: its earlier siblings' subtrees, and its parent.
    before = np.cumsum(num_nodes[siblings]) - num_nodes[siblings]
    _, family_start, family_size = np.unique(parent[siblings], return_index=True, return_counts=True)
    before -= np.repeat(before[family_start], family_size)
    step = np.zeros_like(parent)
    step[siblings] = before + 1
    return sums_to_root(parent, step)[1:] - 1
