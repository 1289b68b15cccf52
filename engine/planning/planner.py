"""The planner's door: requests in, an ordered forest of segments out."""

from collections.abc import Sequence

import numpy as np

from engine.planning.forest import Ints, sums_to_root
from engine.planning.lengths import LengthEstimator
from engine.planning.ordering import decode_heavy_first
from engine.planning.plan import Plan, PlannedSegment
from engine.planning.prefix_tree import PrefixTree, build_prefix_tree
from engine.planning.sharing import Bools, nearest_chosen, optimal_sharing
from engine.request import Refusal, Request


def make_plan(requests: Sequence[Request], *, page_size: int, num_pages: int) -> Plan:
    """The segments that serve `requests` with the fewest tokens computed, in the order to run them.

    A request that does not fit in `num_pages` pages even alone is refused. The plan does not depend on the
    order of the requests, but for which of two equal prompts goes first.
    """
    refused = _refusals(requests, page_size, num_pages)
    refused_ids = {refusal.request_id for refusal in refused}
    requests = [request for request in requests if request.request_id not in refused_ids]
    tree = build_prefix_tree([request.prompt_ids for request in requests])
    # A segment wastes half a page at its end on average, and that much KV must earn its place;
    # a shorter prefix would also cost attention one more small item in each step.
    chosen = optimal_sharing(tree, overhead=page_size // 2)
    max_tokens = np.array([requests[index].sampling.max_tokens for index in tree.prompt], dtype=np.int64)
    flattened = _chain_pages(tree, chosen, max_tokens, page_size) > num_pages
    chosen &= _num_members(tree, flattened) >= 2
    chosen[0] = True
    return Plan(
        segments=_lay_out(requests, tree, chosen, flattened),
        num_prompt_tokens=int(tree.length.sum()),
        num_unique_tokens=tree.num_unique_tokens,
        refused=refused,
    )


def _refusals(requests: Sequence[Request], page_size: int, num_pages: int) -> tuple[Refusal, ...]:
    refused = []
    for request in requests:
        num_prompt_tokens, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
        # The last token generated is never fed back, so it needs no KV.
        pages = -(-(num_prompt_tokens + max_tokens - 1) // page_size)
        if pages > num_pages:
            reason = (
                f"a prompt of {num_prompt_tokens} tokens and up to {max_tokens} output tokens need {pages} "
                f"KV pages of {page_size} tokens, and there are {num_pages}"
            )
            refused.append(Refusal(request.request_id, reason))
    return tuple(refused)


def _chain_pages(tree: PrefixTree, chosen: Bools, max_tokens: Ints, page_size: int) -> Ints:
    """int64 [L]: pages of each leaf's chain of segments, its longest output included."""
    nearest = nearest_chosen(tree, chosen)
    enclosing = nearest[tree.parent]
    own_tokens = np.where(chosen, tree.depth - tree.depth[enclosing], 0)
    above = sums_to_root(enclosing, -(-own_tokens // page_size))
    leaf_enclosing = nearest[tree.leaf_parent]
    leaf_tokens = tree.length - tree.depth[leaf_enclosing] + max_tokens - 1
    return above[leaf_enclosing] + -(-leaf_tokens // page_size)


def _num_members(tree: PrefixTree, flattened: Bools) -> Ints:
    """int64 [M]: leaves below each node that use it."""
    before = np.concatenate(([0], np.cumsum(~flattened)))
    members: Ints = before[tree.leaf_stop] - before[tree.first_leaf]
    return members


def _lay_out(
    requests: Sequence[Request], tree: PrefixTree, chosen: Bools, flattened: Bools
) -> tuple[PlannedSegment, ...]:
    """The chosen nodes and the leaves as segments, in the order to run them."""
    nodes = np.flatnonzero(chosen)
    index_of_node = np.cumsum(chosen) - 1
    nearest = nearest_chosen(tree, chosen)
    leaf_enclosing = np.where(flattened, 0, nearest[tree.leaf_parent])
    enclosing = np.concatenate((nearest[tree.parent[nodes]], leaf_enclosing))
    start = tree.depth[enclosing]
    stop = np.concatenate((tree.depth[nodes], tree.length))
    parent = index_of_node[enclosing]
    leaf_requests = [requests[index] for index in tree.prompt]
    expected = LengthEstimator().expected_of_many(
        np.zeros(len(leaf_requests), dtype=np.int64),
        np.array([request.sampling.max_tokens for request in leaf_requests], dtype=np.int64),
        np.array([request.sampling.ignore_eos for request in leaf_requests], dtype=np.bool_),
    )
    outputs = np.concatenate((np.zeros(len(nodes), dtype=np.int64), expected))
    place = decode_heavy_first(parent, stop - start, outputs)
    # Where a segment's tokens stand: a prompt that has them, and whose own tail they are.
    sources = [leaf_requests[leaf] for leaf in tree.first_leaf[nodes]] if leaf_requests else []
    owners: list[Request | None] = [None] * len(nodes)
    sources += leaf_requests
    owners += leaf_requests
    place_of = np.concatenate(([0], place)).tolist()
    start_of, stop_of, parent_of = start.tolist(), stop.tolist(), parent.tolist()
    segments = []
    for index in (np.argsort(place) + 1).tolist():
        above = parent_of[index]
        segments.append(
            PlannedSegment(
                token_ids=sources[index].prompt_ids[start_of[index] : stop_of[index]],
                parent=place_of[above] if above else None,
                request=owners[index],
            )
        )
    return tuple(segments)
