"""Which new prompts begin like one that is already here: the unfinished requests that may share, sorted.

Neighbours in the order of the prompts' bytes have the longest common prefixes, so a prompt's place among them
is found by bisection, and its nearest kin is right before or after it.
"""

from bisect import bisect_left
from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from engine.planning.prefix_tree import num_shared_tokens
from engine.request import Request, TokenIds
from engine.scheduling.occupancy import Occupancy
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """New requests whose prompts go on from one segment that is here.

    num_pages: that each of them may have beside those of the segment and of all above it.
    """

    below: Segment
    requests: list[Request]
    num_pages: int


class Scopes:
    """The unfinished requests that later ones may share with, by sharing scope."""

    def __init__(self, occupancy: Occupancy) -> None:
        self._occupancy = occupancy
        self._kin: dict[Hashable, Kin] = {}

    def add(self, sequence: Sequence, scope: Hashable) -> None:
        """scope: None is one that nobody looks up."""
        if scope is not None:
            self._kin.setdefault(scope, Kin()).add(sequence)

    def branches(self, requests: Many[Request], scope: Hashable) -> tuple[list[Branch], list[Request]]:
        """The requests that can go on from what is here of the scope, and those that cannot."""
        self._kin = {scope: kin for scope, kin in self._kin.items() if kin.settle()}
        kin = self._kin.get(scope)
        if kin is None:
            return [], list(requests)
        alone: list[Request] = []
        below: dict[Segment, list[Request]] = {}
        for request in requests:
            segment = kin.segment_for(request.prompt_ids, self._occupancy)
            (alone if segment is None else below.setdefault(segment, [])).append(request)
        num_pages = self._occupancy.pool.num_pages
        return [
            Branch(segment, members, num_pages - self._occupancy.pages_down_to(segment))
            for segment, members in below.items()
        ], alone


class Kin:
    """The unfinished requests of one sharing scope."""

    def __init__(self) -> None:
        self._sorted: list[Sequence] = []
        self._added: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self._added.append(sequence)

    def settle(self) -> bool:
        """Forgets what is over and sorts the rest in; before prompts are looked up. Whether there is any."""
        found = [sequence for sequence in self._sorted if not sequence.is_over]
        added = sorted((sequence for sequence in self._added if not sequence.is_over), key=_key)
        self._added = []
        self._sorted = []
        start = 0
        for sequence in added:
            stop = bisect_left(found, _key(sequence), start, key=_key)
            self._sorted += found[start:stop]
            self._sorted.append(sequence)
            start = stop
        self._sorted += found[start:]
        return bool(self._sorted)

    def segment_for(self, prompt_ids: TokenIds, occupancy: Occupancy) -> Segment | None:
        """The segment that the prompt can follow: the longest there is, or can be had by cutting whole pages
        off one. It ends before the prompt's last token."""
        place = bisect_left(self._sorted, prompt_ids.tobytes(), key=_key)
        neighbours = self._sorted[max(place - 1, 0) : place + 1]
        shared = [num_shared_tokens(prompt_ids, kin.request.prompt_ids) for kin in neighbours]
        num_tokens = max(shared, default=0)
        if num_tokens == 0:
            return None
        segment: Segment | None = neighbours[shared.index(num_tokens)]
        while segment is not None and segment.position >= num_tokens:
            segment = segment.parent
        if segment is None or segment.stop == num_tokens:
            return segment
        page_size = occupancy.pool.page_size
        whole_pages = (num_tokens - segment.position) // page_size * page_size
        return occupancy.split(segment, whole_pages) if whole_pages else segment.parent


def _key(sequence: Sequence) -> bytes:
    return sequence.request.prompt_ids.tobytes()
