"""A batch's series as paths: x from 0 to 1000 over its time, y from 100 (nothing) to 0 (the top)."""

import math
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 1000, 100


@dataclass(frozen=True)
class Plot:
    """areas: of the back first, each a path of steps and its CSS class; `top`: the value at y = 0."""

    areas: list[tuple[str, str]]
    top: float
    highest: float
    mean: float


@dataclass(frozen=True)
class Plots:
    tokens_per_step: Plot
    kv: Plot
    seconds: float  # of the whole width
    kv_capacity_tokens: int


def draw_series(series: dict[str, Any]) -> Plots:
    """Of a series as app/batch_telemetry.py stores it, with one point at least."""
    points = series["points"]
    start = points[0][0]
    seconds = max(points[-1][0] + points[-1][1] - start, 0.01)
    spans = [((at - start) / seconds, (at - start + length) / seconds) for at, length, *_ in points]
    per_step = [tokens / steps for _, _, steps, tokens, *_ in points]
    kv, shared = [point[4] for point in points], [point[5] for point in points]
    capacity = max(series["kv_capacity_tokens"], *kv, 1)
    num_steps = sum(point[2] for point in points)
    top = _round_top(max(per_step))
    mean = sum(point[3] for point in points) / num_steps
    tokens_plot = Plot([(_area(spans, per_step, top), "area-tokens")], top, max(per_step), mean)
    areas = [(_area(spans, kv, capacity), "area-own"), (_area(spans, shared, capacity), "area-shared")]
    kv_plot = Plot(areas, capacity, max(kv), sum(kv) / len(kv))
    return Plots(tokens_plot, kv_plot, seconds, capacity)


def _round_top(value: float) -> float:
    """The next of 1.2, 1.6, 2, 3, 4, 6, 8, 10 times a power of ten whose half is a whole number too."""
    size = 10.0 ** math.floor(math.log10(max(value, 1)))
    tops = (step * size for step in (1.2, 1.6, 2, 3, 4, 6, 8, 10))
    return next(top for top in tops if value <= top and top % 2 == 0)


def _area(spans: list[tuple[float, float]], values: list[float], top: float) -> str:
    """One column a point, so that a pause is a gap."""
    return "".join(
        f"M{first * WIDTH:.1f} {HEIGHT}V{HEIGHT * (1 - value / top):.1f}H{last * WIDTH:.1f}V{HEIGHT}Z"
        for (first, last), value in zip(spans, values, strict=True)
    )
