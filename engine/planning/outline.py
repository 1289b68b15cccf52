"""A plan's sharing in a few numbers: its largest shared prefixes, and the rest of the forest summed up.

plan                               outline of one prefix
P  40 tokens                       P: 40 tokens, 5 requests
+- A  9 tokens                        tails: 2 requests, 8 tokens
|  +- 1, 2, 3 (2 tokens each)         other: 1 prefix, 3 requests, 9 + 6 tokens
+- 4, 5 (4 tokens each)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.planning.forest import Ints, sums_of_subtrees, sums_to_root
from engine.planning.plan import Plan
from engine.request import TokenIds

MAX_PREFIXES = 40
PREVIEW_TOKENS = 32
MAX_EXAMPLES = 5

Bools = NDArray[np.bool_]
Decode = Callable[[TokenIds], str]


@dataclass(frozen=True, slots=True)
class Members:
    """What lies directly below a prefix, or below none.

    num_tails, tail_tokens: requests that go on alone, and the prompt tokens of their own.
    num_others, other_requests, other_tokens: prefixes that the outline leaves out, those within others not
        counted; the requests below them; the tokens computed for both.
    """

    num_tails: int
    tail_tokens: int
    num_others: int
    other_requests: int
    other_tokens: int


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A prefix that is computed once.

    parent: index of the prefix around it in `Outline.prefixes`; None: it starts the prompts.
    start: tokens of the prompts before it.
    num_requests: whose prompts have it.
    text: how it begins.
    request_ids: some of these requests.
    """

    parent: int | None
    start: int
    num_tokens: int
    num_requests: int
    text: str
    request_ids: tuple[int, ...]
    members: Members


@dataclass(frozen=True, slots=True)
class Outline:
    """What a plan shares. Of bounded size, however large the plan.

    prefixes: those that save the most, up to `MAX_PREFIXES`, in the order of the plan: parents come first.
    roots: what lies below no prefix of them.
    num_levels: most prefixes that a prompt consists of. num_prefixes: of the whole plan.
    """

    prefixes: tuple[SharedPrefix, ...]
    roots: Members
    num_requests: int
    num_prompt_tokens: int
    num_computed_tokens: int
    num_prefixes: int
    num_levels: int


def outline_of(plan: Plan, decode: Decode) -> Outline:
    """The outline of `plan`; `decode` turns tokens into text."""
    # Node 0 stands for what is above all roots; segment i is node i + 1.
    segments = plan.segments
    parent = np.array([0, *(0 if s.parent is None else s.parent + 1 for s in segments)], dtype=np.int64)
    tokens = np.array([0, *(len(s.token_ids) for s in segments)], dtype=np.int64)
    is_leaf = np.array([False, *(s.request is not None for s in segments)], dtype=np.bool_)
    requests = sums_of_subtrees(parent, is_leaf.astype(np.int64))
    saved = np.where(is_leaf, 0, tokens * (requests - 1))
    stop = sums_to_root(parent, tokens)
    is_listed = _largest(parent, saved)
    members = _members(parent, tokens, is_leaf, requests, is_listed)
    nodes = np.flatnonzero(is_listed)
    index_of = {node: index - 1 for index, node in enumerate(nodes.tolist())}
    prefixes = tuple(
        SharedPrefix(
            parent=None if parent[node] == 0 else index_of[int(parent[node])],
            start=int(stop[node] - tokens[node]),
            num_tokens=int(tokens[node]),
            num_requests=int(requests[node]),
            text=decode(segments[node - 1].token_ids[:PREVIEW_TOKENS]),
            request_ids=_examples(plan, node - 1),
            members=members[node],
        )
        for node in nodes.tolist()[1:]
    )
    return Outline(
        prefixes=prefixes,
        roots=members[0],
        num_requests=int(requests[0]),
        num_prompt_tokens=plan.num_prompt_tokens,
        num_computed_tokens=plan.num_computed_tokens,
        num_prefixes=len(segments) - int(is_leaf.sum()),
        num_levels=int(sums_to_root(parent, (~is_leaf).astype(np.int64)).max()),
    )


def _largest(parent: Ints, saved: Ints) -> Bools:
    """bool [N]: the prefixes that save the most, each with all that are around it, and node 0."""
    is_listed = np.zeros(len(parent), dtype=np.bool_)
    is_listed[0] = True
    num_left = MAX_PREFIXES
    for node in np.argsort(-saved, kind="stable")[: int((saved > 0).sum())].tolist():
        path = []
        while not is_listed[node]:
            path.append(node)
            node = int(parent[node])
        if len(path) > num_left:
            break
        is_listed[path] = True
        num_left -= len(path)
    return is_listed


def _members(
    parent: Ints,
    tokens: Ints,
    is_leaf: Bools,
    requests: Ints,
    is_listed: Bools,
) -> dict[int, Members]:
    """Of each listed node."""
    computed = sums_of_subtrees(parent, tokens)
    is_tail = is_leaf & is_listed[parent]
    is_other = ~is_leaf & ~is_listed & is_listed[parent]

    def sums(chosen: Bools, values: Ints) -> Ints:
        return np.bincount(parent[chosen], values[chosen], minlength=len(parent)).astype(np.int64)

    ones = np.ones_like(parent)
    columns = (
        sums(is_tail, ones),
        sums(is_tail, tokens),
        sums(is_other, ones),
        sums(is_other, requests),
        sums(is_other, computed),
    )
    return {node: Members(*(int(c[node]) for c in columns)) for node in np.flatnonzero(is_listed).tolist()}


def _examples(plan: Plan, index: int) -> tuple[int, ...]:
    """Some requests below a segment: its subtree follows it, and has at least two."""
    found: list[int] = []
    for number in range(index + 1, len(plan.segments)):
        segment = plan.segments[number]
        if segment.parent is None or segment.parent < index or len(found) == MAX_EXAMPLES:
            break
        if segment.request is not None:
            found.append(segment.request.request_id)
    return tuple(found)
