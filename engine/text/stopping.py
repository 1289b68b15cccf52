"""Stop strings: when a sequence's text contains one, and where the text is cut."""

from collections.abc import Sequence

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
    """Watches one sequence, token by token, for its stop strings."""

    def __init__(self, decoder: Decoder, stop: Sequence[str]) -> None:
        self._detokenizer = IncrementalDetokenizer(decoder)
        self._strings = StopStrings(stop)

    def push(self, token_id: int) -> bool:
        """Whether the text so far contains a stop string, with this token."""
        return self._strings.push(self._detokenizer.push(token_id))

    def cut(self, text: str) -> str:
        """See StopStrings.cut."""
        return self._strings.cut(text)
