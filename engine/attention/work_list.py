"""The attention of one step as a flat list of items: query rows over one range of one segment's KV.

A segment gives up to two items (see the drawing in `engine/scheduling/batch.py`):

    own      its own rows, causal, over its KV up to each row
    below    all rows of its descendants, over all of its KV

Every row belongs to exactly one own item and to one below item per ancestor; the partial results of
a row are merged by log-sum-exp. With a sliding window, what no row of an item can see is cut off.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.scheduling.batch import StepBatch

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class WorkList:
    """Columns of N items.

    row_start, row_end: rows of the step.
    segment: index of the segment (into the columns of the StepBatch) whose KV is read.
    kv_start, kv_end: tokens of that segment.
    causal: own items; row i of the item's n sees tokens below kv_end - n + i + 1.
    """

    row_start: Ints
    row_end: Ints
    segment: Ints
    kv_start: Ints
    kv_end: Ints
    causal: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row_start)


def build_work_list(batch: StepBatch, window: int | None = None) -> WorkList:
    """The items of a step; `window`: a query sees only keys with 0 <= q - k < window (positions)."""
    own_end = batch.row_start + batch.row_count
    own = np.flatnonzero(batch.row_count)
    below = np.flatnonzero((batch.subtree_end > own_end) & (batch.kv_len > 0))
    row_start = np.concatenate([batch.row_start[own], own_end[below]]).astype(np.int64)
    row_end = np.concatenate([own_end[own], batch.subtree_end[below]]).astype(np.int64)
    segment = np.concatenate([own, below])
    kv_end = batch.kv_len[segment].astype(np.int64)
    kv_start = np.zeros(len(segment), np.int64)
    causal = np.arange(len(segment)) < len(own)
    if window is not None:
        kv_start = _first_visible(batch, row_start, row_end, segment, window)
    seen = kv_start < kv_end
    return WorkList(row_start[seen], row_end[seen], segment[seen], kv_start[seen], kv_end[seen], causal[seen])


def _first_visible(batch: StepBatch, row_start: Ints, row_end: Ints, segment: Ints, window: int) -> Ints:
    """First token of each item's segment that some row of the item still sees."""
    starts_and_ends = np.stack([row_start, row_end], axis=1).ravel()
    padded = np.append(batch.positions, np.int32(0))  # reduceat wants every index inside
    first_position = np.minimum.reduceat(padded, starts_and_ends)[::2]
    first_seen = first_position - window + 1 - batch.kv_position[segment]
    return np.maximum(first_seen, 0).astype(np.int64)
