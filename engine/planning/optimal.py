"""The branch nodes that make the fewest tokens, by dynamic programming over the prefix tree."""

import numpy as np
from numpy.typing import NDArray

from engine.planning.forest import Ints, levels
from engine.planning.prefix_tree import PrefixTree

Bools = NDArray[np.bool_]


def fewest_tokens(tree: PrefixTree, *, overhead: int) -> Bools:
    """The nodes that make the tokens computed, plus `overhead` tokens per segment, the fewest possible.

    Exact. With `y` the tokens between a node's end and the end of the nearest chosen node above it,

        cost(leaf, y) = y
        cost(v, y)    = min( sum of cost(child, y + edge),                 v is not a segment
                             y + overhead + sum of cost(child, edge) )     v is one

    where `edge` is the child's own length. A node has at least two children, so the first line grows by
    two or more with each token of `y`, the second by one: from y = overhead on, v is a segment whatever
    stands above. So a row of overhead + 1 costs tells all of a node, and the work is linear in nodes.

    Returns: bool [M], the chosen nodes; the root counts as chosen.
    """
    by_level = levels(tree.parent)
    edge = tree.depth - tree.depth[tree.parent]
    is_segment = _solve(tree, by_level, edge, overhead)
    chosen = np.zeros(len(tree.parent), dtype=np.bool_)
    chosen[0] = True
    gap = np.zeros(len(tree.parent), dtype=np.int64)
    for nodes in by_level[1:]:
        above = tree.parent[nodes]
        gap[nodes] = edge[nodes] + np.where(chosen[above], 0, gap[above])
        chosen[nodes] = is_segment[nodes, np.minimum(gap[nodes], overhead)]
    return chosen


def _solve(tree: PrefixTree, by_level: list[Ints], edge: Ints, overhead: int) -> Bools:
    """bool [M, overhead + 1]: whether a node is a segment, for y = 0 .. overhead."""
    gaps = np.arange(overhead + 1)
    tails = tree.length - tree.depth[tree.leaf_parent]
    num_nodes = len(tree.parent)
    num_tails = np.bincount(tree.leaf_parent, minlength=num_nodes)
    sum_tails = np.bincount(tree.leaf_parent, weights=tails, minlength=num_nodes).astype(np.int64)
    # Starts as what the leaves of each node cost; each level then adds its cost to its parents'.
    unshared = sum_tails[:, None] + num_tails[:, None] * gaps
    is_segment = np.zeros(unshared.shape, dtype=np.bool_)
    for nodes in reversed(by_level):
        shared = unshared[nodes, :1] + gaps + overhead
        is_segment[nodes] = shared < unshared[nodes]
        # The last column stands for every larger y too, where a tie is one no more.
        is_segment[nodes, overhead] = True
        if nodes[0] == 0:
            break
        from_parent = edge[nodes][:, None] + gaps
        within = np.minimum(from_parent, overhead)
        cost = np.minimum(shared, unshared[nodes])
        added = np.take_along_axis(cost, within, axis=1) + (from_parent - within)
        np.add.at(unshared, tree.parent[nodes], added)
    return is_segment
