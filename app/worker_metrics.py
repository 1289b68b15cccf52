"""What a worker measures of itself. It travels to `/metrics` with the worker's signs of life."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.batch_engine import BatchEngine
from app.metric_names import HISTOGRAMS
from app.results import Recorder
from app.running import RunningBatch
from engine.request import Completion


@dataclass(eq=False)
class Histogram:
    """counts: by bucket, not summed up; one more than there are bounds."""

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class WorkerMetrics:
    """Counts since the worker started."""

    def __init__(self) -> None:
        self._num_finished = self._num_saved = self._num_lost = 0
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}

    def stepped(self, seconds: float, num_tokens: int, completions: Sequence[Completion]) -> None:
        self._histograms["step_seconds"].observe(seconds)
        self._histograms["step_tokens"].observe(num_tokens)
        self._num_finished += len(completions)
        self._num_saved += sum(completion.num_cached_tokens for completion in completions)

    def lease_lost(self) -> None:
        self._num_lost += 1

    def as_json(
        self, engine: BatchEngine, recorder: Recorder, batches: Sequence[RunningBatch]
    ) -> dict[str, Any]:
        """A value for every name in app/metric_names.py."""
        stats, load = engine.stats, engine.load
        return {
            "prompt_tokens_computed": stats.computed_prompt_tokens,
            "prompt_tokens_saved": self._num_saved,
            "tokens_recomputed": stats.recomputed_tokens,
            "output_tokens": stats.output_tokens,
            "requests_finished": self._num_finished,
            "lines_completed": recorder.num_completed,
            "lines_failed": recorder.num_failed,
            "leases_lost": self._num_lost,
            "preemptions": stats.preemptions,
            "kv_bytes": load.kv_bytes,
            "kv_used_bytes": load.used_kv_bytes,
            "batches": len(batches),
            "requests_running": len(engine.running_ids),
            "lines_unanswered": sum(len(batch.waiting) + len(batch.unanswered) for batch in batches),
            **{name: {"total": h.total, "counts": list(h.counts)} for name, h in self._histograms.items()},
        }
