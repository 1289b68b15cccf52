"""The resident table: every segment that has pages, as columns, so that a step is a few array operations."""

import numpy as np
from numpy.typing import NDArray

from engine.memory.pages import PageIds, is_one_run
from engine.request import TokenIds
from engine.scheduling.layout import Layout, Slots, lay_out
from engine.scheduling.segment import NO_PAGES, Segment
from engine.scheduling.sequence import Sequence

_ROOT_LEAF_PLACE = -1

_COLUMNS = {
    "is_resident": np.bool_,
    "is_leaf": np.bool_,
    "is_idle": np.bool_,
    "decoding": np.bool_,
    "rank": np.int64,
    "parent_slot": np.int64,
    "place": np.int64,
    "place_stop": np.int64,
    "tenant": np.int64,
    "job": np.int64,
    "num_ended": np.int64,
    "ended_tokens": np.int64,
    "position": np.int32,
    "num_tokens": np.int32,
    "num_computed": np.int32,
    "num_pages": np.int32,
    "first_page": np.int32,
    "in_one_run": np.bool_,
    "num_prompt": np.int32,
    "last_token": np.int32,
    "max_tokens": np.int32,
    "ignore_eos": np.bool_,
    "request_id": np.int64,
    "temperature": np.float32,
    "top_p": np.float32,
    "top_k": np.int32,
    "min_p": np.float32,
    "seed": np.uint64,
    "is_special": np.bool_,
}


class Residents:
    """Columns indexed by slot; a slot stays with its segment from `enter` to `leave`.

    num_tokens: tokens known of the segment: prompt, and for a leaf its output too.
    num_computed: tokens whose KV exists (or will, when the step that is being built has run).
    num_prompt: prompt tokens of the segment.
    in_one_run: its pages are first_page, first_page + 1, ...
    is_idle: a shared segment that nobody holds.
    parent_slot: of the segment above, -1 for a root and where nothing is.
    place: orders the residents: of a shared segment twice its number in preorder among those, of a leaf one
        more than that of the segment above. place_stop: of a shared segment, where its subtree is over.
    decoding: a leaf of which only the last known token is left to compute: one row a step.
    last_token: last known token of a decoding leaf.
    num_shared_pages: of all shared segments together, one number.
    The other columns are those of Segment and of the request.
    """

    is_resident: NDArray[np.bool_]
    is_leaf: NDArray[np.bool_]
    is_idle: NDArray[np.bool_]
    decoding: NDArray[np.bool_]
    rank: NDArray[np.int64]
    parent_slot: Slots
    place: NDArray[np.int64]
    place_stop: NDArray[np.int64]
    tenant: NDArray[np.int64]
    job: NDArray[np.int64]
    num_ended: NDArray[np.int64]
    ended_tokens: NDArray[np.int64]
    position: NDArray[np.int32]
    num_tokens: NDArray[np.int32]
    num_computed: NDArray[np.int32]
    num_pages: NDArray[np.int32]
    first_page: NDArray[np.int32]
    in_one_run: NDArray[np.bool_]
    num_prompt: NDArray[np.int32]
    last_token: NDArray[np.int32]
    max_tokens: NDArray[np.int32]
    ignore_eos: NDArray[np.bool_]
    request_id: NDArray[np.int64]
    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    top_k: NDArray[np.int32]
    min_p: NDArray[np.float32]
    seed: NDArray[np.uint64]
    is_special: NDArray[np.bool_]

    def __init__(self) -> None:
        self._segments: list[Segment | None] = []
        self._free_slots: list[int] = []
        self._layout: Layout | None = None
        self._has_places = True
        self._next_place = 0
        self.num_shared_pages = 0
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype=dtype))
        self._outputs = np.zeros((0, 64), dtype=np.int32)  # int32 [slots, tokens generated]
        self._add_slots(64)

    def enter(self, segment: Segment, page_ids: PageIds) -> None:
        """Gives the segment a slot; nothing of it is computed yet."""
        if not self._free_slots:
            self._add_slots(len(self._segments))
        slot = self._free_slots.pop()
        segment.slot = slot
        self._segments[slot] = segment
        self.is_resident[slot] = True
        self.rank[slot] = segment.rank
        self.position[slot] = segment.position
        self.parent_slot[slot] = -1 if segment.parent is None else self.slot_of(segment.parent)
        self.num_prompt[slot] = self.num_tokens[slot] = len(segment.token_ids)
        self.num_computed[slot] = 0
        self.num_ended[slot] = segment.num_ended
        self.ended_tokens[slot] = segment.ended_tokens
        self.set_pages(segment, page_ids)
        if isinstance(segment, Sequence):
            self._enter_leaf(slot, segment)
        else:
            self._append_place(slot)

    def leave(self, segment: Segment) -> PageIds:
        """Takes the slot back; the segment keeps its output. Returns the pages it had."""
        slot = self.slot_of(segment)
        segment.num_ever_computed = max(segment.num_ever_computed, int(self.num_computed[slot]))
        if isinstance(segment, Sequence):
            segment.output_ids = self.output_of(slot).copy()
        else:
            self.num_shared_pages -= len(segment.page_ids)
        pages = segment.page_ids
        segment.page_ids = NO_PAGES
        segment.slot = None
        self._segments[slot] = None
        for flags in (self.is_resident, self.is_leaf, self.is_idle, self.decoding):
            flags[slot] = False
        self.parent_slot[slot] = -1
        self._free_slots.append(slot)
        self._layout = None
        return pages

    def set_pages(self, segment: Segment, page_ids: PageIds) -> None:
        slot = self.slot_of(segment)
        if not isinstance(segment, Sequence):
            self.num_shared_pages += len(page_ids) - len(segment.page_ids)
        segment.page_ids = page_ids
        self.num_pages[slot] = len(page_ids)
        self.first_page[slot] = page_ids[0]
        self.in_one_run[slot] = is_one_run(page_ids)
        self._layout = None

    def enter_above(self, head: Segment, segment: Segment, num_pages: int) -> None:
        """Gives the first pages of a resident segment, and what is computed in them, to `head`, which was cut
        off its front."""
        slot, num_tokens = self.slot_of(segment), len(head.token_ids)
        pages, num_computed = segment.page_ids, int(self.num_computed[slot])
        self.enter(head, pages[:num_pages])
        self._has_places = False
        head_slot = self.slot_of(head)
        self.num_computed[head_slot] = min(num_computed, num_tokens)
        self.num_computed[slot] = max(num_computed - num_tokens, 0)
        self.num_tokens[slot] -= num_tokens
        self.num_prompt[slot] -= num_tokens
        self.position[slot] = segment.position
        self.parent_slot[slot] = head_slot
        self.set_pages(segment, pages[num_pages:])

    def slot_of(self, segment: Segment) -> int:
        assert segment.slot is not None, f"segment {segment.rank} has no pages"
        return segment.slot

    def segment_at(self, slot: int) -> Segment:
        segment = self._segments[slot]
        assert segment is not None, f"slot {slot} is empty"
        return segment

    def sequence_at(self, slot: int) -> Sequence:
        segment = self._segments[slot]
        assert isinstance(segment, Sequence), f"slot {slot} holds {segment}"
        return segment

    def latest_leaf(self) -> Sequence:
        """The one that ranks behind all others."""
        slots = np.flatnonzero(self.is_leaf)
        return self.sequence_at(int(slots[np.argmax(self.rank[slots])]))

    def output_of(self, slot: int) -> TokenIds:
        """int32: what the leaf in `slot` has generated; a view that lasts until the next token."""
        return self._outputs[slot, : self.num_tokens[slot] - self.num_prompt[slot]]

    def is_complete(self, segment: Segment) -> bool:
        """Whether all its known tokens are computed."""
        slot = segment.slot
        return slot is not None and bool(self.num_computed[slot] == self.num_tokens[slot])

    def has_prefix(self, sequence: Sequence) -> bool:
        """Whether all that `sequence` reads of other segments is computed."""
        return sequence.parent is None or self.is_complete(sequence.parent)

    def incomplete_above(self, sequence: Sequence) -> list[Segment]:
        """Segments above `sequence` with tokens left to compute, top down; above a complete one all are."""
        incomplete = []
        segment = sequence.parent
        while segment is not None and not self.is_complete(segment):
            incomplete.append(segment)
            segment = segment.parent
        return incomplete[::-1]

    def num_computed_above(self, sequence: Sequence) -> int:
        """Prompt tokens of `sequence` that are computed in the segments above it."""
        incomplete = self.incomplete_above(sequence)
        complete_tokens = incomplete[0].position if incomplete else sequence.position
        return complete_tokens + sum(int(self.num_computed[self.slot_of(segment)]) for segment in incomplete)

    def append_tokens(self, slots: Slots, token_ids: TokenIds) -> None:
        """One more generated token for each of `slots`; from here on they decode."""
        generated = self.num_tokens[slots] - self.num_prompt[slots]
        longest = int(generated.max(initial=0))
        if longest >= self._outputs.shape[1]:
            self._outputs = np.pad(self._outputs, ((0, 0), (0, longest)))
        self._outputs[slots, generated] = token_ids
        self.last_token[slots] = token_ids
        self.num_tokens[slots] += 1
        self.decoding[slots] = True

    def layout(self) -> Layout:
        if self._layout is None:
            if not self._has_places:
                self._place_shared()
            self._layout = lay_out(self)
        return self._layout

    def _place_shared(self) -> None:
        """Numbers the residents in preorder."""
        shared = np.flatnonzero(self.is_resident & ~self.is_leaf)
        shared = shared[np.lexsort((self.rank[shared], self.position[shared]))]
        below: dict[int, list[int]] = {}
        for slot, parent in zip(shared.tolist(), self.parent_slot[shared].tolist(), strict=True):
            below.setdefault(parent, []).append(slot)
        place = 0
        path = [(-1, iter(below.get(-1, ())))]
        while path:
            slot = next(path[-1][1], -1)
            if slot < 0:
                done, _ = path.pop()
                if done >= 0:
                    self.place_stop[done] = place
            else:
                self.place[slot] = place
                place += 2
                path.append((slot, iter(below.get(slot, ()))))
        leaves = np.flatnonzero(self.is_leaf)
        above = self.parent_slot[leaves]
        self.place[leaves] = np.where(above >= 0, self.place[above] + 1, _ROOT_LEAF_PLACE)
        self._next_place = place
        self._has_places = True

    def _append_place(self, slot: int) -> None:
        """Lets a shared segment be the last in preorder, or sees that all are numbered anew."""
        above = int(self.parent_slot[slot])
        if above >= 0 and self.place_stop[above] != self._next_place:
            self._has_places = False
            return
        self.place[slot] = self._next_place
        self._next_place += 2
        while slot >= 0:
            self.place_stop[slot] = self._next_place
            slot = int(self.parent_slot[slot])

    def _enter_leaf(self, slot: int, sequence: Sequence) -> None:
        sampling = sequence.request.sampling
        num_generated = len(sequence.output_ids)
        self.is_leaf[slot] = True
        self.num_tokens[slot] += num_generated
        self.max_tokens[slot] = sampling.max_tokens
        self.ignore_eos[slot] = sampling.ignore_eos
        self.request_id[slot] = sequence.request.request_id
        self.tenant[slot] = sequence.tenant
        self.job[slot] = sequence.job
        above = self.parent_slot[slot]
        self.place[slot] = self.place[above] + 1 if above >= 0 else _ROOT_LEAF_PLACE
        self.temperature[slot] = sampling.temperature
        self.top_p[slot] = sampling.top_p
        self.top_k[slot] = sampling.top_k
        self.min_p[slot] = sampling.min_p
        self.seed[slot] = sampling.seed
        self.is_special[slot] = sampling.is_special
        # The row is as wide as when this output was last in the table, or wider.
        self._outputs[slot, :num_generated] = sequence.output_ids

    def _add_slots(self, num_slots: int) -> None:
        old = len(self._segments)
        for name in _COLUMNS:
            setattr(self, name, np.pad(getattr(self, name), (0, num_slots)))
        self.parent_slot[old:] = -1
        self._outputs = np.pad(self._outputs, ((0, num_slots), (0, 0)))
        self._segments += [None] * num_slots
        self._free_slots += range(old + num_slots - 1, old - 1, -1)
