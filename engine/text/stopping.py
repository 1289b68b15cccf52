"""What ends a sequence beside its end token: stop strings and stop tokens, and where the text is cut."""

from collections.abc import Sequence

from engine.request import SamplingParams, TokenIds
from engine.text.detokenizer import Decoder, IncrementalDetokenizer


class StopStrings:
    """Looks for any of some strings, none of them empty, in a text that comes in pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._num_kept = max(map(len, self._stop)) - 1  # the longest start of a match yet to complete
        self._tail = ""

    def push(self, text: str) -> bool:
        """Whether a stop string ends in this piece."""
        seen = self._tail + text
        self._tail = seen[max(len(seen) - self._num_kept, 0) :]
        return any(stop in seen for stop in self._stop)

    def cut(self, text: str) -> str:
        """The text before the first stop string in it, or all of it."""
        starts = [start for start in map(text.find, self._stop) if start >= 0]
        return text[: min(starts, default=len(text))]


class StopWatcher:
    """Watches one sequence, token by token, for its stop strings and stop tokens.

    A stop string counts only where it lies behind what the first `min_tokens` tokens made; stop tokens cannot
    come among these (see SpecialRow.banned_ids).
    """

    def __init__(self, decoder: Decoder, sampling: SamplingParams) -> None:
        self._stop_token_ids = frozenset(sampling.stop_token_ids)
        self._strings = StopStrings(sampling.stop) if sampling.stop else None
        self._detokenizer = IncrementalDetokenizer(decoder)
        self._num_early = sampling.min_tokens
        self._num_early_characters = 0

    def push(self, token_id: int) -> bool:
        """Whether the sequence ends with this token."""
        if token_id in self._stop_token_ids:
            return True
        if self._strings is None:
            return False
        text = self._detokenizer.push(token_id)
        if self._num_early > 0:
            self._num_early -= 1
            self._num_early_characters += len(text)
            return False
        return self._strings.push(text)

    def ends_by_token(self, output_ids: TokenIds) -> bool:
        """Whether the last of these tokens is a stop token."""
        return len(output_ids) > 0 and int(output_ids[-1]) in self._stop_token_ids

    def cut(self, text: str) -> str:
        """The text before the first stop string that counts, or all of it."""
        if self._strings is None:
            return text
        early = text[: self._num_early_characters]
        return early + self._strings.cut(text[self._num_early_characters :])
