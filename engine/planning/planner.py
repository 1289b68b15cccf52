"""The planner's door: requests in, an ordered forest of segments out."""

from collections.abc import Sequence

import numpy as np

from engine.planning.forest import Ints, sums_to_root
from engine.planning.lengths import LengthEstimator
from engine.planning.ordering import Forest, OrderingPolicy, decode_heavy_first, preorder
from engine.planning.plan import Plan, PlannedSegment
from engine.planning.prefix_tree import PrefixTree, build_prefix_tree
from engine.planning.sharing import Segmentation, SharingPolicy, share_optimally
from engine.request import Refusal, Request


def make_plan(
    requests: Sequence[Request],
    *,
    page_size: int,
    num_pages: int,
    num_ready: int = 0,
    sharing: SharingPolicy = share_optimally,
    ordering: OrderingPolicy = decode_heavy_first,
) -> Plan:
    """The segments that serve `requests`, in the order to run them.

    num_ready: tokens at the start of each prompt, the same in all and not all of one, that are there already:
    the plan is of what follows, and `num_pages` is what there is beside them.

    A request that does not fit in `num_pages` pages even alone is refused. With the policies it has, the plan
    does not depend on the order of the requests, but for which of two equal prompts goes first.
    """
    refused = _refusals(requests, page_size, num_pages, num_ready)
    refused_ids = {refusal.request_id for refusal in refused}
    requests = [request for request in requests if request.request_id not in refused_ids]
    num_prompt_tokens = sum(len(request.prompt_ids) for request in requests)
    if len(requests) == 1:  # most often so where many prompts join what is there
        tail = PlannedSegment(requests[0].prompt_ids[num_ready:], parent=None, request=requests[0])
        return Plan((tail,), num_prompt_tokens, num_unique_tokens=len(tail.token_ids), refused=refused)
    tree = build_prefix_tree([request.prompt_ids[num_ready:] for request in requests])
    segmentation = sharing(tree, page_size)
    max_tokens = np.array([requests[index].sampling.max_tokens for index in tree.prompt], dtype=np.int64)
    too_long = _chain_pages(tree, segmentation, max_tokens, page_size) > num_pages
    segmentation = segmentation.with_flat_leaves(too_long)
    is_alone = segmentation.num_members() < 2
    is_alone[0] = False
    return Plan(
        segments=_lay_out(requests, tree, segmentation.without(is_alone), ordering, num_ready),
        num_prompt_tokens=num_prompt_tokens,
        num_unique_tokens=tree.num_unique_tokens,
        refused=refused,
    )


def _refusals(
    requests: Sequence[Request], page_size: int, num_pages: int, num_ready: int
) -> tuple[Refusal, ...]:
    refused = []
    for request in requests:
        num_prompt_tokens, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
        # The last token generated is never fed back, so it needs no KV.
        pages = -(-(num_prompt_tokens - num_ready + max_tokens - 1) // page_size)
        if pages > num_pages:
            reason = (
                f"a prompt of {num_prompt_tokens} tokens and up to {max_tokens} output tokens need {pages} "
                f"KV pages of {page_size} tokens, and there are {num_pages}"
            )
            refused.append(Refusal(request.request_id, reason))
    return tuple(refused)


def _chain_pages(tree: PrefixTree, shared: Segmentation, max_tokens: Ints, page_size: int) -> Ints:
    """int64 [L]: pages of each leaf's chain of segments, its longest output included."""
    own_tokens = np.where(shared.chosen, shared.stop - shared.stop[shared.around], 0)
    above = sums_to_root(shared.around, -(-own_tokens // page_size))
    leaf_tokens = tree.length - shared.stop[shared.leaf_around] + max_tokens - 1
    return above[shared.leaf_around] + -(-leaf_tokens // page_size)


def _lay_out(
    requests: Sequence[Request],
    tree: PrefixTree,
    shared: Segmentation,
    ordering: OrderingPolicy,
    num_ready: int,
) -> tuple[PlannedSegment, ...]:
    """The shared segments and the leaves, in the order to run them."""
    nodes = np.flatnonzero(shared.chosen)
    index_of_node = np.cumsum(shared.chosen) - 1
    around = np.concatenate((shared.around[nodes], shared.leaf_around))
    start = shared.stop[around]
    stop = np.concatenate((shared.stop[nodes], tree.length))
    parent = index_of_node[around]
    leaf_requests = [requests[index] for index in tree.prompt]
    forest = Forest(
        parent=parent,
        prompt_tokens=stop - start,
        output_tokens=np.concatenate(
            (np.zeros(len(nodes), dtype=np.int64), _expected_outputs(leaf_requests))
        ),
        arrival=np.concatenate((np.full(len(nodes), len(requests)), tree.prompt)),
    )
    place = preorder(parent, ordering(forest))
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
                token_ids=sources[index].prompt_ids[num_ready + start_of[index] : num_ready + stop_of[index]],
                parent=place_of[above] if above else None,
                request=owners[index],
            )
        )
    return tuple(segments)


def _expected_outputs(requests: Sequence[Request]) -> Ints:
    """int64: output lengths as believed before anything has run."""
    return LengthEstimator().expected_of_many(
        np.zeros(len(requests), dtype=np.int64),
        np.array([request.sampling.max_tokens for request in requests], dtype=np.int64),
        np.array([request.sampling.ignore_eos for request in requests], dtype=np.bool_),
    )
