"""Running sequences on their way to the next token: which prompt rows a step computes for them."""

from engine.scheduling.batch_builder import Span
from engine.scheduling.residents import Residents
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence


class Filling:
    """Running sequences that do not decode yet: few, since a step admits only while it has rows left.

    num_computed_prompt_tokens: computed for the first time.
    num_recomputed_tokens: computed again after preemption or eviction, outputs included.
    """

    def __init__(self, residents: Residents) -> None:
        self.num_computed_prompt_tokens = 0
        self.num_recomputed_tokens = 0
        self._residents = residents
        self._sequences: list[Sequence] = []

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    def add(self, sequence: Sequence) -> None:
        self._sequences.append(sequence)

    def discard(self, sequence: Sequence) -> None:
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def settle(self) -> None:
        """Forgets those that decode now."""
        if self._sequences:
            decoding = self._residents.decoding
            self._sequences = [sequence for sequence in self._sequences if not decoding[sequence.slot]]

    def in_order(self) -> list[Sequence]:
        """Own rows before prefix rows: they end in a sample soonest."""
        self._sequences.sort(key=lambda sequence: (not self._residents.has_prefix(sequence), sequence.rank))
        return list(self._sequences)

    def advance(self, sequence: Sequence, num_rows: int, spans: list[Span]) -> int:
        """Up to `num_rows` rows towards the sequence's next token, top down. Returns how many it used."""
        num_used = 0
        for segment in (*self._residents.incomplete_above(sequence), sequence):
            slot = self._residents.slot_of(segment)
            start = int(self._residents.num_computed[slot])
            stop = min(int(self._residents.num_tokens[slot]), start + num_rows - num_used)
            if stop == start:
                break
            spans.append(Span(slot, segment.known_tokens[start:stop]))
            self._residents.num_computed[slot] = stop
            self._count(segment, start, stop)
            num_used += stop - start
        return num_used

    def _count(self, segment: Segment, start: int, stop: int) -> None:
        first_new = max(start, segment.num_ever_computed)
        self.num_recomputed_tokens += min(stop, first_new) - start
        self.num_computed_prompt_tokens += max(min(stop, len(segment.token_ids)) - first_new, 0)
