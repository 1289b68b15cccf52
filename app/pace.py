"""How fast a worker is, and how long what it holds will take."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from app.batch_engine import BatchEngine
from app.running import RunningBatch, line_id

TELL_SECONDS = 1.0
_WINDOW_SECONDS = 60.0


class Pace:
    """Tokens of answered lines a second, prompts and outputs, as of late; the clock starts when there is
    something to run."""

    def __init__(self) -> None:
        self._num_answered = 0
        self._marks: deque[tuple[float, int]] = deque()  # (monotonic time, tokens answered by then)
        self._next_at = 0.0

    def answered(self, num_tokens: int) -> None:
        self._num_answered += num_tokens

    def tell(self, batches: Sequence[RunningBatch], engine: BatchEngine) -> None:
        """Put each batch's progress where the next heartbeat finds it."""
        now = time.monotonic()
        self._marks.append((now, self._num_answered))
        while now - self._marks[0][0] > _WINDOW_SECONDS:
            self._marks.popleft()
        self._next_at = now + TELL_SECONDS
        seconds, num_tokens = now - self._marks[0][0], self._num_answered - self._marks[0][1]
        num_ahead = 0
        for batch in sorted(batches, key=lambda batch: -batch.claim.priority):
            num_ahead += batch.num_prompt_tokens + batch.expected_output_tokens(engine)
            is_known = num_tokens > 0 and batch.untranslated is None
            batch.watch.progress = _progress(
                batch, engine.running_ids, round(num_ahead * seconds / num_tokens) if is_known else None
            )

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next_at

    def rest(self) -> None:
        """Nothing is left to run: the time until there is counts for nothing."""
        self._marks.clear()


def _progress(batch: RunningBatch, running_ids: frozenset[int], eta_seconds: int | None) -> dict[str, Any]:
    return {
        "lines_read": batch.num_read,
        "prompt_tokens_done": batch.prompt_tokens_done,
        "output_tokens_done": batch.output_tokens_done,
        "lines_running": len(set(map(line_id, running_ids)) & batch.unanswered.keys()),
        "eta_seconds": eta_seconds,
    }
