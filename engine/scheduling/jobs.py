"""What each job's outputs tell of its sequences that have not ended."""

from collections.abc import Hashable

import numpy as np

from engine.planning.lengths import Bools, Floats
from engine.scheduling.layout import Slots

# Ended sequences after which a job's or a segment's own lengths count half, and what is around it the other
# half. Chosen, not tuned.
HALF_BELIEVED = 4


class Jobs:
    """Jobs that have unfinished sequences, by number; a number is used again when a job is over.

    Short outputs end first, so the mean of those that ended would be too low while the job runs. Tokens
    generated for each end are too high or too low for a job as for all jobs, so the two are compared.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._keys: list[Hashable] = []
        self._num_members: list[int] = []
        self._free: list[int] = []
        self._num_tokens = np.zeros(0)
        self._num_ended = np.zeros(0)

    def join(self, key: Hashable) -> int:
        """The number of the job, which has one more sequence."""
        if key not in self._numbers:
            if not self._free:
                self._free.append(len(self._keys))
                self._keys.append(None)
                self._num_members.append(0)
                self._num_tokens = np.append(self._num_tokens, 0.0)
                self._num_ended = np.append(self._num_ended, 0.0)
            number = self._free.pop()
            self._numbers[key], self._keys[number] = number, key
            self._num_tokens[number] = self._num_ended[number] = 0.0
        number = self._numbers[key]
        self._num_members[number] += 1
        return number

    def leave(self, number: int) -> None:
        """The job has one sequence less."""
        self._num_members[number] -= 1
        if not self._num_members[number]:
            del self._numbers[self._keys[number]]
            self._keys[number] = None
            self._free.append(number)

    def observe(self, numbers: Slots, ended: Bools) -> None:
        """One token more for a sequence of each of these jobs, and which of them ended by themselves."""
        self._num_tokens += np.bincount(numbers, minlength=len(self._keys))
        self._num_ended += np.bincount(numbers[ended], minlength=len(self._keys))

    def ratio(self, number: int, tokens_per_end: float) -> float:
        """`ratios` of one job."""
        num_tokens, num_ended = float(self._num_tokens[number]), float(self._num_ended[number])
        return (num_tokens / tokens_per_end + HALF_BELIEVED) / (num_ended + HALF_BELIEVED)

    def ratios(self, tokens_per_end: float) -> Floats:
        """By number: how much longer a job's outputs are expected to be than those of all jobs.

        tokens_per_end: of all jobs.
        """
        ratios: Floats = (self._num_tokens / tokens_per_end + HALF_BELIEVED) / (
            self._num_ended + HALF_BELIEVED
        )
        return ratios
