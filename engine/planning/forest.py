"""Trees as parent arrays: node 0 is the root and its own parent. Sums along paths, sums over subtrees."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def sums_to_root(parent: Ints, values: Ints) -> Ints:
    """int64 [M]: per node the sum of `values` over the path from just below the root to the node."""
    total = np.where(parent == np.arange(len(parent)), 0, values)
    above = parent
    # Each round doubles the stretch of the path that `total` covers.
    while above.any():
        total = total + total[above]
        above = above[above]
    return total


def levels(parent: Ints) -> list[Ints]:
    """The nodes by their distance from the root; the root alone comes first."""
    level = sums_to_root(parent, np.ones_like(parent))
    return np.split(np.argsort(level, kind="stable"), np.cumsum(np.bincount(level))[:-1])


def sums_of_subtrees(parent: Ints, values: Ints) -> Ints:
    """int64 [M]: per node the sum of `values` over its subtree, itself included."""
    total = values.copy()
    for nodes in reversed(levels(parent)[1:]):
        np.add.at(total, parent[nodes], total[nodes])
    return total
