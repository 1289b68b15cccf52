"""Which new prompts begin like one that is already here: the unfinished requests that may share, sorted.

Neighbours in the order of the prompts' bytes have the longest common prefixes, so a prompt's place among them
is found by bisection, and its nearest kin is right before or after it.
"""

from bisect import bisect_left

from engine.planning.prefix_tree import num_shared_tokens
from engine.request import TokenIds
from engine.scheduling.occupancy import Occupancy
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence


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
