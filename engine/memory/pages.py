"""The pool of KV pages: which are free, and which run to hand out next."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

PageIds = NDArray[np.int32]


def is_one_run(page_ids: PageIds) -> bool:
    """Whether the pages, at least one, follow each other."""
    # Ends that lie right apart are nearly always a run; only then is it worth looking closer.
    has_ends_of_run = int(page_ids[-1]) - int(page_ids[0]) == len(page_ids) - 1
    return has_ends_of_run and np.count_nonzero(page_ids[1:] - page_ids[:-1] == 1) == len(page_ids) - 1


class PagePool:
    """Pages 0 .. num_pages - 1 of `page_size` KV slots; every page that is not free has one owner.

    Free pages are kept as maximal runs, found by either end and by length, because attention reads a
    contiguous run in place and has to gather anything else.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_free = 0
        self.peak_used = 0
        self._is_free = np.zeros(num_pages, dtype=np.bool_)
        self._stop_of: dict[int, int] = {}  # free runs [start, stop), by start
        self._start_of: dict[int, int] = {}  # and by stop
        self._by_length: list[tuple[int, int]] = []  # (length, start), sorted
        if num_pages:
            self._release_run(0, num_pages)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens of one segment."""
        return -(-num_tokens // self.page_size)

    def allocate(self, num_pages: int, after: int | None = None) -> PageIds:
        """Takes pages: those right after page `after` first, then one run, the shortest that suffices, else
        the longest runs there are.

        Returns: int32 [num_pages]. The caller has seen that num_pages <= num_free.
        """
        assert num_pages <= self.num_free, f"{num_pages} pages wanted, {self.num_free} free"
        taken: list[PageIds] = []
        missing = num_pages
        if after is not None and (stop := self._stop_of.get(after + 1)) is not None:
            missing -= self._take(after + 1, min(missing, stop - after - 1), taken)
        while missing:
            fit = bisect_left(self._by_length, (missing, 0))
            length, start = self._by_length[min(fit, len(self._by_length) - 1)]
            missing -= self._take(start, min(missing, length), taken)
        self.peak_used = max(self.peak_used, self.num_used)
        return taken[0] if len(taken) == 1 else np.concatenate(taken or [np.empty(0, dtype=np.int32)])

    def free(self, page_ids: PageIds) -> None:
        """Gives pages back; each must be in use."""
        if len(page_ids) == 0:
            return
        if is_one_run(page_ids):
            self._release_run(int(page_ids[0]), int(page_ids[-1]) + 1)
            return
        pages = np.sort(page_ids)
        breaks = np.flatnonzero(np.diff(pages) != 1) + 1
        for run in np.split(pages, breaks):
            self._release_run(int(run[0]), int(run[-1]) + 1)

    def check_invariants(self) -> None:
        """Asserts that runs are maximal and disjoint, and that all three views of them agree."""
        assert self._stop_of == {start: stop for stop, start in self._start_of.items()}
        assert self._by_length == sorted((stop - start, start) for start, stop in self._stop_of.items())
        edges = np.flatnonzero(np.diff(self._is_free, prepend=False, append=False))
        assert sorted(self._stop_of.items()) == list(map(tuple, edges.reshape(-1, 2).tolist()))
        assert self.num_free == int(self._is_free.sum())

    def _take(self, start: int, num_pages: int, taken: list[PageIds]) -> int:
        """Takes the first `num_pages` of the run at `start`."""
        stop = self._stop_of.pop(start)
        self._remove(stop - start, start)
        if num_pages < stop - start:
            self._insert(start + num_pages, stop)
        else:
            del self._start_of[stop]
        self._is_free[start : start + num_pages] = False
        self.num_free -= num_pages
        taken.append(np.arange(start, start + num_pages, dtype=np.int32))
        return num_pages

    def _release_run(self, start: int, stop: int) -> None:
        assert not self._is_free[start:stop].any(), f"pages of [{start}, {stop}) freed twice"
        self._is_free[start:stop] = True
        self.num_free += stop - start
        if (before := self._start_of.pop(start, None)) is not None:
            self._remove(start - before, before)
            start = before
        if (after := self._stop_of.pop(stop, None)) is not None:
            self._remove(after - stop, stop)
            stop = after
        self._insert(start, stop)

    def _insert(self, start: int, stop: int) -> None:
        self._stop_of[start] = stop
        self._start_of[stop] = start
        insort(self._by_length, (stop - start, start))

    def _remove(self, length: int, start: int) -> None:
        del self._by_length[bisect_left(self._by_length, (length, start))]
