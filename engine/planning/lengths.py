"""How many tokens a request will generate: learned while the job runs, used for order and for KV pages."""

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

# Output length believed while nothing is known: a chat model's short answer. It weighs as much as one ended
# sequence, so that a few hundred generated tokens outvote it.
PRIOR_TOKENS = 256
# A length's own hazard is believed against the pooled one from about this many tokens seen at that length.
POOLED_TOKENS = 64
# The table of survivals is rebuilt once in so many observed steps: it costs about what 30 look-ups do.
STEPS_BETWEEN_UPDATES = 16
# Four bins an octave: a length is known to a fifth, and 128k tokens are 60 bins.
_BIN_STARTS = np.unique(np.floor(2.0 ** (np.arange(4 * 21) / 4)).astype(np.int64))
# Sums of survivals are off by rounding; a length just above a whole number is that number.
_ROUNDING = 1e-9


class LengthEstimator:
    """Survival analysis of output lengths, over all sequences of a worker.

    Averaging what has finished would be biased: short outputs finish first. So every generated token
    counts as an exposure, whether its sequence has ended or not, and the chance to end at a length is
    ends / exposures there. Lengths are binned; bins seen little lean on the pooled chance.
    Requests with ignore_eos never end early and teach nothing.
    """

    def __init__(self) -> None:
        self._num_exposed = np.zeros(len(_BIN_STARTS))
        self._num_ended = np.zeros(len(_BIN_STARTS))
        self._num_steps = 0
        self._table_length = 0
        self._survival = np.ones(0)
        self._survival_sum = np.zeros(0)

    def observe(self, num_generated: Ints, ended: Bools) -> None:
        """One step: sequences that now have `num_generated` tokens, and which of them ended by themselves."""
        if len(num_generated) == 0:
            return
        bins = np.searchsorted(_BIN_STARTS, num_generated, side="right") - 1
        self._num_exposed += np.bincount(bins, minlength=len(_BIN_STARTS))
        self._num_ended += np.bincount(bins[ended], minlength=len(_BIN_STARTS))
        self._num_steps += 1
        if self._num_steps % STEPS_BETWEEN_UPDATES == 0:
            self._table_length = 0

    @property
    def tokens_per_end(self) -> float:
        """Tokens generated for each sequence that ended, the prior among both."""
        return float((self._num_exposed.sum() + PRIOR_TOKENS) / (self._num_ended.sum() + 1))

    def expected(
        self, num_generated: int, max_tokens: int, ignore_eos: bool, tokens: float = 0.0, weight: float = 1.0
    ) -> int:
        """Expected final output length, rounded up: in (num_generated, max_tokens].

        num_generated: tokens generated so far, < max_tokens.
        tokens, weight: what is known of the sequence's kin: before its first token its length is expected to
            be tokens + weight * that of any sequence. Lengths are then taken to be distributed as those
            of all are, stretched by the ratio of the two.
        """
        if ignore_eos:
            return max_tokens
        self._cover(max_tokens)
        # E[min(L, m) | L > g] = g + sum over k in [g, m) of P(L > k | L > g)
        sums = self._survival_sum
        ratio = weight + tokens / max(float(sums[0] - sums[max_tokens]), 1.0)
        place = min(int(num_generated / ratio), max_tokens)
        remaining = ratio * float((sums[place] - sums[max_tokens]) / self._survival[place])
        return min(max(num_generated + math.ceil(remaining - _ROUNDING), num_generated + 1), max_tokens)

    def expected_of_many(
        self,
        num_generated: Ints,
        max_tokens: Ints,
        ignore_eos: Bools,
        tokens: Floats | float = 0.0,
        weight: Floats | float = 1.0,
    ) -> NDArray[np.int64]:
        """`expected` of each, int64."""
        self._cover(int(max_tokens.max(initial=0)))
        sums = self._survival_sum
        # The maximum changes nothing but for max_tokens 0.
        ratio = weight + tokens / np.maximum(sums[0] - sums[max_tokens], 1.0)
        place = np.minimum((num_generated / ratio).astype(np.int64), max_tokens)
        remaining = ratio * (sums[place] - sums[max_tokens]) / self._survival[place]
        ends = num_generated + np.ceil(remaining - _ROUNDING).astype(np.int64)
        ends = np.minimum(np.maximum(ends, num_generated + 1), max_tokens)
        return np.where(ignore_eos, max_tokens, ends)

    def _cover(self, longest: int) -> None:
        if longest >= self._table_length:
            self._rebuild(longest)

    def _rebuild(self, longest: int) -> None:
        """P(L > k) for k = 0 .. longest, and its sums from k to the end."""
        length = 1 << max(longest, 1).bit_length()
        pooled = 1 / self.tokens_per_end
        hazard = (self._num_ended + POOLED_TOKENS * pooled) / (self._num_exposed + POOLED_TOKENS)
        starts = _BIN_STARTS[: np.searchsorted(_BIN_STARTS, length, side="right")]
        per_token = np.repeat(hazard[: len(starts)], np.diff(starts, append=length + 1))
        # Nobody is known to survive here where even the floor is reached; it only keeps the quotient finite.
        log_survival = np.maximum(np.cumsum(np.log1p(-np.minimum(per_token, 0.999))), -600.0)
        self._survival = np.exp(np.concatenate(([0.0], log_survival)))
        # Summed from the far end: near it a difference of two sums from the front would be rounding alone.
        self._survival_sum = np.cumsum(self._survival[::-1])[::-1]
        self._table_length = length
