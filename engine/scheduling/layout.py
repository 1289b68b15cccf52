"""The residents in the order in which a step has its rows, with the pages of each."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.memory.pages import PageIds

if TYPE_CHECKING:
    from engine.scheduling.residents import Residents

Slots = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The residents in preorder; it lasts until a segment enters, leaves, or its pages change.

    slots: int64 [R]
    subtree_stop: int64 [R], one past the last resident of the subtree, as an index into `slots`.
    page_start: int32 [R + 1], page_ids: int32 [P]: resident i owns page_ids[page_start[i]:page_start[i + 1]].
    """

    slots: Slots
    subtree_stop: NDArray[np.int64]
    page_start: NDArray[np.int32]
    page_ids: PageIds


def lay_out(table: "Residents") -> Layout:
    """The layout of a table whose places are settled, with at least one resident."""
    slots = np.flatnonzero(table.is_resident)
    key = table.place[slots]
    by_place = np.argsort(key)
    slots, key = slots[by_place], key[by_place]
    stop = np.arange(1, len(slots) + 1)
    shared = np.flatnonzero(~table.is_leaf[slots])
    stop[shared] = np.searchsorted(key, table.place_stop[slots[shared]])
    num_pages = table.num_pages[slots]
    page_start = np.zeros(len(slots) + 1, dtype=np.int32)
    np.cumsum(num_pages, out=page_start[1:])
    # As if each had one run of pages; those that have more are fewer, and written over.
    page_ids = np.arange(page_start[-1], dtype=np.int32)
    page_ids += np.repeat(table.first_page[slots] - page_start[:-1], num_pages)
    is_scattered = ~table.in_one_run[slots]
    if is_scattered.any():
        pages = [table.segment_at(slot).page_ids for slot in slots[is_scattered].tolist()]
        page_ids[np.repeat(is_scattered, num_pages)] = np.concatenate(pages)
    return Layout(
        slots=slots,
        subtree_stop=stop,
        page_start=page_start,
        page_ids=page_ids,
    )
