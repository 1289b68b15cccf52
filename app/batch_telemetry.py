"""What a worker leaves behind of a batch's run for whoever looks at it: bounded, however long the run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from engine.planning.outline import Outline
from engine.stats import EngineStats

MAX_POINTS = 240
MAX_TEXT_CHARS = 120

# Further apart than this, two points are not of one stretch of work: the batch was paused in between.
_GAP_SECONDS = 10.0


class Point(NamedTuple):
    """What the worker did in `seconds` from `at` (unix seconds), all its batches together.

    kv_tokens, shared_kv_tokens: KV slots taken, and those of shared prefixes, at the fullest look.
    """

    at: float
    seconds: float
    steps: int
    tokens: int
    kv_tokens: int
    shared_kv_tokens: int

    def joined(self, later: "Point") -> "Point":
        fullest = max(self, later, key=lambda point: point.kv_tokens)
        return Point(
            self.at,
            later.at + later.seconds - self.at,
            self.steps + later.steps,
            self.tokens + later.tokens,
            fullest.kv_tokens,
            fullest.shared_kv_tokens,
        )


class Series:
    """Points of equal length in time; when there are too many, twice that length and half as many."""

    def __init__(self, stored: Sequence[Sequence[float]] = (), interval_seconds: float = 1.0) -> None:
        self.interval_seconds = interval_seconds
        self.points = [
            Point(at, seconds, *(int(count) for count in counts)) for at, seconds, *counts in stored
        ]

    def add(self, point: Point) -> None:
        self._append(point)
        while len(self.points) > MAX_POINTS:
            self.interval_seconds *= 2
            points, self.points = self.points, []
            for one in points:
                self._append(one)
            if len(self.points) == len(points):  # nothing but gaps: the oldest goes
                del self.points[0]

    def _append(self, point: Point) -> None:
        last = self.points[-1] if self.points else None
        if last is not None and point.at - (last.at + last.seconds) < _GAP_SECONDS:
            joined = last.joined(point)
            # A tenth of tolerance: looks come a little later than they should.
            if joined.seconds <= 1.1 * self.interval_seconds:
                self.points[-1] = joined
                return
        self.points.append(point)


class Meter:
    """What an engine did between two looks."""

    def __init__(self, stats: EngineStats, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.skip(stats)

    def skip(self, stats: EngineStats) -> None:
        """Nothing ran since the last look."""
        self._at, self._steps, self._tokens = self._clock(), stats.steps, stats.computed_tokens

    def look(self, stats: EngineStats) -> Point | None:
        """Since the last look; None if there was no step."""
        at, steps, tokens = self._at, self._steps, self._tokens
        self.skip(stats)
        if stats.steps == steps:
            return None
        return Point(
            round(at, 2),
            round(max(self._at - at, 0.01), 2),
            stats.steps - steps,
            stats.computed_tokens - tokens,
            stats.kv_tokens,
            stats.shared_kv_tokens,
        )


class Telemetry:
    """Of one batch: its outline, once it is planned, and its series.

    stored: as the database has it from earlier claims.
    """

    def __init__(self, stored: dict[str, Any] | None) -> None:
        self._kv_capacity_tokens = 0
        self.outline: dict[str, Any] | None = None
        self._series = Series()
        if stored is not None:
            self._series = Series(stored["points"], stored["interval_seconds"])

    def plan(self, outline: Outline, custom_id_of: Callable[[int], str]) -> None:
        """Takes in what is shared."""
        self.outline = outline_json(outline, custom_id_of)

    def add(self, point: Point, kv_capacity_tokens: int) -> None:
        self._kv_capacity_tokens = kv_capacity_tokens
        self._series.add(point)

    def series_json(self) -> dict[str, Any] | None:
        """A snapshot; None while there is no point."""
        if not self._series.points:
            return None
        return {
            "interval_seconds": self._series.interval_seconds,
            "kv_capacity_tokens": self._kv_capacity_tokens,
            "points": [list(point) for point in self._series.points],
        }


def outline_json(outline: Outline, custom_id_of: Callable[[int], str]) -> dict[str, Any]:
    """As it is stored: examples are custom ids, texts are short."""
    fields = asdict(outline)
    for prefix in fields["prefixes"]:
        prefix["examples"] = [_short(custom_id_of(id_)) for id_ in prefix.pop("request_ids")]
        prefix["text"] = _short(prefix["text"])
    return fields


def _short(text: str) -> str:
    """NUL has no place in Postgres' JSON, and half a character at the end none on a page."""
    text = text.replace("\0", "\ufffd").rstrip("\ufffd")
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1]}…"
