"""The compressed prefix tree of many prompts, in arrays: sort, common prefix of neighbours, one stack.

sorted prompts     common prefix      branch nodes (depth in tokens)
0  a b c d         3                  root 0
1  a b c e         1                   +- 1: a          leaves 0..2
2  a f g           0                       +- 3: a b c  leaves 0..1
3  h i
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.planning.forest import Ints
from engine.request import TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTree:
    """Branch nodes and leaves of the tree; every prompt is one leaf, with at least one token of its own.

    Leaves (L of them, sorted so that equal prefixes are adjacent):
        prompt: int64 [L], index of the leaf's prompt in the caller's list.
        length: int64 [L], tokens of the prompt.
        leaf_parent: int64 [L], deepest branch node above the leaf.

    Branch nodes (M of them, in preorder; node 0 is the root, of depth 0 and its own parent; every
    other node has at least two children):
        parent: int64 [M]
        depth: int64 [M], tokens from the start of the prompt to the node's end.
        first_leaf, leaf_stop: int64 [M], the leaves below are [first_leaf, leaf_stop).
    """

    prompt: Ints
    length: Ints
    leaf_parent: Ints
    parent: Ints
    depth: Ints
    first_leaf: Ints
    leaf_stop: Ints

    @property
    def num_unique_tokens(self) -> int:
        """Tokens of the whole tree: what is computed when every branch is shared."""
        edges = self.depth - self.depth[self.parent]
        tails = self.length - self.depth[self.leaf_parent]
        return int(edges.sum() + tails.sum())


def build_prefix_tree(prompts: Sequence[TokenIds]) -> PrefixTree:
    """The prefix tree of `prompts`, each int32 with at least one token.

    A prompt is shared up to its last token but one, so that duplicates and prompts that are prefixes
    of others keep a row to sample from. Memory: one copy of the tokens, for the time of the sort.
    """
    order = _sorted_by_tokens(prompts)
    lengths = np.array([len(prompts[index]) for index in order], dtype=np.int64)
    return _tree_of_sorted(order, lengths, _shared_with_next(prompts, order))


def _sorted_by_tokens(prompts: Sequence[TokenIds]) -> list[int]:
    # Any order in which equal prefixes are adjacent will do, so the bytes of the tokens are compared as they
    # lie in memory; little-endian words do not sort by value. Ties keep the caller's order.
    keys = [prompt.tobytes() for prompt in prompts]
    return sorted(range(len(prompts)), key=keys.__getitem__)


def _shared_with_next(prompts: Sequence[TokenIds], order: list[int]) -> list[int]:
    """Tokens that each sorted prompt shares with the one after it; both keep their last token."""
    shared = []
    for index, next_index in pairwise(order):
        shared.append(num_shared_tokens(prompts[index], prompts[next_index]))
    return shared


def num_shared_tokens(prompt: TokenIds, other: TokenIds) -> int:
    """Tokens that two prompts have in common from their start on; both keep their last one."""
    limit = min(len(prompt), len(other)) - 1
    differs = prompt[:limit] != other[:limit]
    # One pass of argmax: it stops at the first difference.
    first = int(differs.argmax()) if limit else 0
    return first if limit and differs[first] else limit


def _tree_of_sorted(order: list[int], lengths: Ints, shared: list[int]) -> PrefixTree:
    """Open nodes lie on a stack, deepest on top; a smaller common prefix closes what is deeper than it."""
    num_leaves = len(order)
    depth, parent, first_leaf, leaf_stop = [0], [0], [0], [num_leaves]
    leaf_parent = [0] * num_leaves
    stack = [0]
    for leaf, common in enumerate(shared):
        start = leaf
        closed = None
        if depth[stack[-1]] > common:
            leaf_parent[leaf] = stack[-1]
            while depth[stack[-1]] > common:
                closed = stack.pop()
                leaf_stop[closed] = leaf + 1
                start = first_leaf[closed]
        if depth[stack[-1]] < common:
            node = len(depth)
            depth.append(common)
            parent.append(stack[-1])
            first_leaf.append(start)
            leaf_stop.append(num_leaves)
            stack.append(node)
        if closed is None:
            leaf_parent[leaf] = stack[-1]
        else:
            parent[closed] = stack[-1]
    if num_leaves:
        leaf_parent[-1] = stack[-1]
    # Of the nodes that start at one leaf the shallower encloses the deeper.
    preorder = np.lexsort((depth, first_leaf))
    rank = np.argsort(preorder)
    return PrefixTree(
        prompt=np.array(order, dtype=np.int64),
        length=lengths,
        leaf_parent=rank[leaf_parent],
        parent=rank[np.array(parent)[preorder]],
        depth=np.array(depth)[preorder],
        first_leaf=np.array(first_leaf)[preorder],
        leaf_stop=np.array(leaf_stop)[preorder],
    )
