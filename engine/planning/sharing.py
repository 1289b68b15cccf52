"""Which runs of tokens become shared segments. A policy is a function (tree, page_size) -> Segmentation.

tree            optimal             single level          none
P               P                   P'                    -
+- A            +- A                |  (A's tokens go
|  +- 1         |  +- 1             |   to its members)   1 (P A 1)
|  +- 2         |  +- 2             +- 1 (A 1)            2 (P A 2)
+- 3            +- 3                +- 2 (A 2), 3         3 (P 3)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.planning.forest import Ints, sums_of_subtrees
from engine.planning.optimal import Bools, fewest_tokens
from engine.planning.prefix_tree import PrefixTree


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The shared segments of a tree, each named by a branch node.

    chosen: bool [M], nodes that are segments; node 0 stands for "no segment around" and is always chosen.
    stop: int64 [M], for chosen nodes the segment's end, in tokens from the start of the prompt.
    around: int64 [M], the chosen node whose segment encloses the node's (itself for node 0).
    leaf_around: int64 [L], the same for each leaf.
    """

    chosen: Bools
    stop: Ints
    around: Ints
    leaf_around: Ints

    def num_members(self) -> Ints:
        """int64 [M]: leaves that use each segment."""
        own = np.bincount(self.leaf_around, minlength=len(self.chosen))
        return sums_of_subtrees(self.around, own)

    def without(self, dropped: Bools) -> "Segmentation":
        """The same without some segments; what they enclosed goes to the next segment around them."""
        chosen = self.chosen & ~dropped
        nearest = np.where(chosen, np.arange(len(chosen)), self.around)
        while not chosen[nearest].all():
            nearest = nearest[nearest]
        return Segmentation(chosen, self.stop, nearest[self.around], nearest[self.leaf_around])

    def with_flat_leaves(self, flat: Bools) -> "Segmentation":
        """The same with some leaves (bool [L]) that share nothing."""
        return Segmentation(self.chosen, self.stop, self.around, np.where(flat, 0, self.leaf_around))


SharingPolicy = Callable[[PrefixTree, int], Segmentation]


def share_optimally(tree: PrefixTree, page_size: int) -> Segmentation:
    """The fewest tokens over several levels, where each segment must earn its overhead.

    A segment wastes half a page at its end on average, and that much KV must earn its place; a shorter prefix
    would also cost attention one more small item in each step.
    """
    return _nested(tree, fewest_tokens(tree, overhead=page_size // 2))


def share_nothing(tree: PrefixTree, page_size: int) -> Segmentation:
    """Every prompt for itself: for ablation."""
    chosen = np.zeros(len(tree.parent), dtype=np.bool_)
    chosen[0] = True
    return _nested(tree, chosen)


def share_single_level(tree: PrefixTree, page_size: int) -> Segmentation:
    """One prefix per group, after enlarging the first level by BatchLLM's local rule (arXiv 2412.03594): for
    ablation.

    Bottom up, a branch g below a child c is lifted to c's level, with a copy of c's tokens in front, where
    (leaves(g) - 1) * len(g) > len(c). A child left with one branch is joined with it. Then each child of the
    root is a group, its tokens cut to whole pages are the prefix, and all below is flattened.
    """
    groups = _first_level(tree)
    chosen = np.zeros(len(tree.parent), dtype=np.bool_)
    chosen[[0, *groups]] = True
    stop = tree.depth // page_size * page_size
    leaf_around = _nearest(tree.parent, chosen)[tree.leaf_parent]
    long_enough = stop[leaf_around] > 0
    return Segmentation(
        chosen=chosen & ((stop > 0) | (tree.depth == 0)),
        stop=stop,
        around=np.zeros_like(tree.parent),
        leaf_around=np.where(long_enough, leaf_around, 0),
    )


def _nested(tree: PrefixTree, chosen: Bools) -> Segmentation:
    """Each chosen node a segment, inside that of the nearest chosen node above it."""
    nearest = _nearest(tree.parent, chosen)
    return Segmentation(chosen, tree.depth, nearest[tree.parent], nearest[tree.leaf_parent])


def _nearest(parent: Ints, chosen: Bools) -> Ints:
    """int64 [M]: each node itself where chosen, else the nearest chosen node above; the root is chosen."""
    nearest = np.where(chosen, np.arange(len(chosen)), parent)
    while not chosen[nearest].all():
        nearest = nearest[nearest]
    return nearest


def _first_level(tree: PrefixTree) -> list[int]:
    """The nodes that end up as children of the root."""
    num_nodes = len(tree.parent)
    depth, parent = tree.depth.tolist(), tree.parent.tolist()
    num_tails = np.bincount(tree.leaf_parent, minlength=num_nodes).tolist()
    num_leaves = (tree.leaf_stop - tree.first_leaf).tolist()
    branches: list[list[int]] = [[] for _ in range(num_nodes)]
    for node in range(1, num_nodes):
        branches[parent[node]].append(node)
    for node in range(num_nodes - 1, -1, -1):  # preorder backwards: children come before their parent
        level: list[int] = []
        for child in branches[node]:
            length = depth[child] - depth[node]
            kept = []
            for branch in branches[child]:
                if (num_leaves[branch] - 1) * (depth[branch] - depth[child]) > length:
                    level.append(branch)
                    num_leaves[child] -= num_leaves[branch]
                else:
                    kept.append(branch)
            branches[child] = kept
            if len(kept) + num_tails[child] > 1:
                level.append(child)
            elif kept:
                level.append(kept[0])
            else:
                num_tails[node] += num_tails[child]
        branches[node] = level
    return branches[0]
