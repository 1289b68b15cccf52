"""How long outputs will be, as learned so far, and how many KV pages that takes in the end.

What is expected of any sequence is corrected by what its job is seen to do, then by the finished members of
each segment above it, from the root down: with n of them the segment's expectation is (their tokens + k * the
expectation around it) / (n + k). So a few do not say much, many say all, and nothing jumps. Where nothing has
finished yet there is a prior below max_tokens.
"""

from collections.abc import Hashable

import numpy as np

from engine.planning.forest import Ints
from engine.planning.lengths import Bools, Floats, LengthEstimator
from engine.request import SamplingParams
from engine.scheduling.jobs import HALF_BELIEVED, Jobs
from engine.scheduling.layout import Slots
from engine.scheduling.residents import Residents
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence


class Outlook:
    """Lengths are in tokens. Pages are a leaf's own: of the tail of its prompt and of its output, whose last
    token is never fed back."""

    def __init__(self, residents: Residents, lengths: LengthEstimator, page_size: int) -> None:
        self._residents = residents
        self._lengths = lengths
        self._page_size = page_size
        self._jobs = Jobs()

    def join(self, job: Hashable) -> int:
        """The number of the job for a sequence of it that comes."""
        return self._jobs.join(job)

    def leave(self, sequence: Sequence) -> None:
        """The sequence is over."""
        self._jobs.leave(sequence.job)

    def observe(self, slots: Slots, ended: Bools) -> None:
        """The running leaves that have one more token, and which of them ended by themselves."""
        table = self._residents
        if (ignores := table.ignore_eos[slots]).any():
            slots, ended = slots[~ignores], ended[~ignores]
        self._lengths.observe(table.num_tokens[slots] - table.num_prompt[slots], ended)
        self._jobs.observe(table.job[slots], ended)

    def learn(self, sequence: Sequence, num_output: int) -> None:
        """The sequence, still in its place, has finished with so many tokens."""
        if sequence.request.sampling.ignore_eos:
            return
        segment = sequence.parent
        while segment is not None:
            segment.num_ended += 1
            segment.ended_tokens += num_output
            if segment.slot is not None:
                self._residents.num_ended[segment.slot] = segment.num_ended
                self._residents.ended_tokens[segment.slot] = segment.ended_tokens
            segment = segment.parent

    def length(self, sampling: SamplingParams, sequence: Sequence | None) -> int:
        """Of the whole output of a request, that of `sequence`; None: it is not here."""
        if sampling.ignore_eos:
            return sampling.max_tokens
        if sequence is None:
            return self._lengths.expected(0, sampling.max_tokens, False)
        num_generated = len(sequence.output_ids)
        if sequence.slot is not None:
            num_generated = len(self._residents.output_of(sequence.slot))
        tokens, weight = 0.0, self._jobs.ratio(sequence.job, self._lengths.tokens_per_end)
        around: list[Segment] = []
        segment = sequence.parent
        while segment is not None:
            around.append(segment)
            segment = segment.parent
        for segment in reversed(around):
            doubt = segment.num_ended + HALF_BELIEVED
            tokens = (segment.ended_tokens + HALF_BELIEVED * tokens) / doubt
            weight *= HALF_BELIEVED / doubt
        return self._lengths.expected(num_generated, sampling.max_tokens, False, tokens, weight)

    def pages_of(self, sequence: Sequence) -> int:
        """Of a sequence that does not run."""
        num_tokens = len(sequence.token_ids) + self.length(sequence.request.sampling, sequence)
        return -(-(num_tokens - 1) // self._page_size)

    def pages_in(self, slots: Slots) -> Ints:
        """Of each running leaf in `slots`, int64."""
        table = self._residents
        num_prompt = table.num_prompt[slots]
        tokens, weight = self._beliefs(slots)
        num_output = self._lengths.expected_of_many(
            table.num_tokens[slots] - num_prompt,
            table.max_tokens[slots],
            table.ignore_eos[slots],
            tokens,
            weight,
        )
        return -(-(num_prompt + num_output - 1) // self._page_size)

    def pages_still_to_come(self) -> int:
        """Pages that running sequences are expected to need beyond those they have."""
        slots = np.flatnonzero(self._residents.is_leaf)
        missing = self.pages_in(slots) - self._residents.num_pages[slots]
        return int(np.maximum(missing, 0).sum())

    def _beliefs(self, slots: Slots) -> tuple[Floats, Floats]:
        """Of running leaves: the `tokens` and `weight` of `LengthEstimator.expected`."""
        table = self._residents
        doubt = table.num_ended + HALF_BELIEVED
        tokens, weight = table.ended_tokens / doubt, HALF_BELIEVED / doubt
        above = table.parent_slot.copy()
        # Each round doubles the stretch of the path to the root that a shared segment's two numbers cover.
        while len(nested := np.flatnonzero((above >= 0) & ~table.is_leaf)):
            around = above[nested]
            tokens[nested] += weight[nested] * tokens[around]
            weight[nested] *= weight[around]
            above[nested] = above[around]
        parents, jobs = table.parent_slot[slots], table.job[slots]
        is_below = parents >= 0
        job_ratio = self._jobs.ratios(self._lengths.tokens_per_end)[jobs]
        return np.where(is_below, tokens[parents], 0.0), np.where(is_below, weight[parents], 1.0) * job_ratio
