"""Who has KV pages and who keeps them: holds on shared prefixes, eviction, pages set aside for outputs."""

import numpy as np

from engine.memory.pages import PagePool
from engine.scheduling.residents import Residents
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence


class Occupancy:
    """The pages of the forest. A running leaf holds every segment above it; what nobody holds is idle.

    A hold is counted where it matters only: by the segment right above, which holds the next one in turn.
    An idle segment keeps its KV for members that still wait, until its pages are needed.
    A resident segment's ancestors are resident.
    """

    def __init__(self, pool: PagePool, residents: Residents) -> None:
        self.pool = pool
        self.residents = residents

    def pages_missing_above(self, sequence: Sequence) -> int:
        """Pages to allocate for the segments above `sequence` before it can run."""
        return sum(self.pool.num_pages_for(len(segment.token_ids)) for segment in _absent_above(sequence))

    def pages_down_to(self, segment: Segment) -> int:
        """Pages of the segment and of all above it, whether it has them now or not."""
        above = 0 if segment.parent is None else self.pages_down_to(segment.parent)
        return above + self.pool.num_pages_for(len(segment.token_ids))

    def pages_within_reach(self, sequence: Sequence) -> int:
        """Free pages and pages of idle segments that are not above `sequence`."""
        reach = self.pool.num_free + int(self.residents.num_pages[self.residents.is_idle].sum())
        segment = sequence.parent
        while segment is not None and segment.num_holds == 0:
            reach -= len(segment.page_ids)
            segment = segment.parent
        return reach

    def settle(self, sequence: Sequence, num_pages: int) -> None:
        """Makes `sequence` run, with `num_pages` pages of its own, and makes the segments above it resident.

        The caller has seen that all this is within reach.
        """
        self._rank_above(sequence)
        self._hold(sequence.parent)
        for segment in reversed(_absent_above(sequence)):
            self._enter(segment, self.pool.num_pages_for(len(segment.token_ids)))
        self._enter(sequence, num_pages)

    def release(self, sequence: Sequence) -> None:
        """Takes the pages of a running leaf, and its hold on what is above it."""
        self.pool.free(self.residents.leave(sequence))
        segment = sequence.parent
        while segment is not None:
            segment.num_holds -= 1
            if segment.num_holds:
                return
            self.residents.is_idle[self.residents.slot_of(segment)] = True
            segment = segment.parent

    def forget(self, sequence: Sequence) -> None:
        """Ends the membership of a leaf that does not run; segments above without a member left are freed."""
        segment = sequence.parent
        while segment is not None:
            segment.num_members -= 1
            if segment.num_members:
                return
            if segment.slot is not None:
                self.pool.free(self.residents.leave(segment))
            segment = segment.parent

    def extend(self, sequence: Sequence, num_pages: int) -> None:
        """Gives a running leaf free pages, those next to its last one where they are free."""
        more = self.pool.allocate(num_pages, after=int(sequence.page_ids[-1]))
        self.residents.set_pages(sequence, np.concatenate((sequence.page_ids, more)))

    def evict_idle(self) -> bool:
        """Takes the pages of the latest idle segment; False if there is none."""
        slots = np.flatnonzero(self.residents.is_idle)
        if len(slots) == 0:
            return False
        # The deepest of equals: a segment's rank is not above that of any below it.
        latest = slots[np.lexsort((self.residents.position[slots], self.residents.rank[slots]))[-1]]
        self.pool.free(self.residents.leave(self.residents.segment_at(int(latest))))
        return True

    def split(self, segment: Segment, num_tokens: int) -> Segment:
        """Cuts the first `num_tokens` tokens, whole pages and not all of them, off a segment or a leaf's
        prompt, as a shared segment around it. What is computed stays so. Returns the new one."""
        head = Segment(segment.parent, segment.token_ids[:num_tokens])
        head.rank = segment.rank
        head.num_members = 1
        head.num_ever_computed = min(segment.num_ever_computed, num_tokens)
        segment.num_ever_computed -= head.num_ever_computed
        head.num_ended, head.ended_tokens = segment.num_ended, segment.ended_tokens
        segment.parent = head
        segment.token_ids = segment.token_ids[num_tokens:]
        segment.position += num_tokens
        if segment.slot is not None:
            self.residents.enter_above(head, segment, num_tokens // self.pool.page_size)
            is_idle = bool(self.residents.is_idle[segment.slot])
            self.residents.is_idle[self.residents.slot_of(head)] = is_idle
            head.num_holds = int(not is_idle)
        return head

    def reclaim_unwritten(self, num_pages: int) -> None:
        """Takes back up to `num_pages` pages set aside for outputs to come, from the latest leaves first."""
        table = self.residents
        slots = np.flatnonzero(table.is_leaf)
        unwritten = table.num_pages[slots] - -(-table.num_tokens[slots] // self.pool.page_size)
        latest_first = np.argsort(-table.rank[slots])
        for index in latest_first[unwritten[latest_first] > 0].tolist():
            if num_pages <= 0:
                return
            sequence = table.sequence_at(int(slots[index]))
            kept = len(sequence.page_ids) - min(int(unwritten[index]), num_pages)
            num_pages -= len(sequence.page_ids) - kept
            self.pool.free(sequence.page_ids[kept:])
            table.set_pages(sequence, sequence.page_ids[:kept])

    def _rank_above(self, sequence: Sequence) -> None:
        segment = sequence.parent
        while segment is not None and segment.rank > sequence.rank:
            segment.rank = sequence.rank
            if segment.slot is not None:
                self.residents.rank[segment.slot] = segment.rank
            segment = segment.parent

    def _hold(self, segment: Segment | None) -> None:
        while segment is not None:
            segment.num_holds += 1
            if segment.num_holds > 1:
                return
            if segment.slot is not None:
                self.residents.is_idle[segment.slot] = False
            segment = segment.parent

    def _enter(self, segment: Segment, num_pages: int) -> None:
        while self.pool.num_free < num_pages:
            assert self.evict_idle(), f"{num_pages} pages wanted, {self.pool.num_free} free, none idle"
        self.residents.enter(segment, self.pool.allocate(num_pages))


def _absent_above(sequence: Sequence) -> list[Segment]:
    """The segments above `sequence` that have no pages, bottom up."""
    absent = []
    segment = sequence.parent
    while segment is not None and segment.slot is None:
        absent.append(segment)
        segment = segment.parent
    return absent
