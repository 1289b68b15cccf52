"""How many KV pages sequences are expected to fill in the end, by the output lengths learned so far."""

import numpy as np

from engine.planning.forest import Ints
from engine.planning.lengths import LengthEstimator
from engine.scheduling.layout import Slots
from engine.scheduling.residents import Residents
from engine.scheduling.sequence import Sequence


class Outlook:
    """Pages of a leaf's own: the tail of its prompt and its output, whose last token is never fed back."""

    def __init__(self, residents: Residents, lengths: LengthEstimator, page_size: int) -> None:
        self._residents = residents
        self._lengths = lengths
        self._page_size = page_size

    def pages_of(self, sequence: Sequence) -> int:
        """Of a sequence that does not run."""
        sampling = sequence.request.sampling
        num_output = self._lengths.expected(
            len(sequence.output_ids), sampling.max_tokens, sampling.ignore_eos
        )
        return -(-(len(sequence.token_ids) + num_output - 1) // self._page_size)

    def pages_in(self, slots: Slots) -> Ints:
        """Of each running leaf in `slots`, int64."""
        table = self._residents
        num_prompt = table.num_prompt[slots]
        num_output = self._lengths.expected_of_many(
            table.num_tokens[slots] - num_prompt, table.max_tokens[slots], table.ignore_eos[slots]
        )
        return -(-(num_prompt + num_output - 1) // self._page_size)

    def pages_still_to_come(self) -> int:
        """Pages that running sequences are expected to need beyond those they have."""
        slots = np.flatnonzero(self._residents.is_leaf)
        missing = self.pages_in(slots) - self._residents.num_pages[slots]
        return int(np.maximum(missing, 0).sum())
