"""Where the blocks of the drawn prefix tree lie: across, tokens from the start of the prompt; down, requests.

A block's area is then what its prompts would cost apart; it is computed once. Within a block the largest
groups come first, then what the outline leaves out, then the requests that go on alone.
"""

from dataclasses import dataclass
from typing import Any

ROW_PIXELS = 26  # of the lowest block: room for a line of text
FULL_PIXELS = 300  # the height that requests share out among them beyond that


@dataclass(frozen=True)
class Block:
    """x, width: in percent; y, height: in pixels. kind: prefix, other or tail."""

    kind: str
    level: int
    x: float
    width: float
    y: float
    height: float
    label: str
    text: str
    title: str


@dataclass(frozen=True)
class Drawing:
    """max_tokens: what the whole width stands for."""

    blocks: list[Block]
    height: float
    max_tokens: int


@dataclass(frozen=True)
class _End:
    """Requests that go on alone, or prefixes that are not listed."""

    kind: str
    num_requests: int
    num_tokens: float  # of each request, on average
    num_groups: int = 0


def draw_tree(outline: dict[str, Any]) -> Drawing:
    """The blocks of an outline as app/telemetry.py stores it."""
    painter = _Painter(outline)
    height = painter.paint(None, 0, 0.0)
    return Drawing(painter.blocks, height, round(painter.max_tokens))


class _Painter:
    def __init__(self, outline: dict[str, Any]) -> None:
        self.blocks: list[Block] = []
        self._prefixes = outline["prefixes"]
        self._roots = outline["roots"]
        self._pixels_per_request = FULL_PIXELS / max(outline["num_requests"], 1)
        self._below: dict[int | None, list[int]] = {}
        for index, prefix in enumerate(self._prefixes):
            self._below.setdefault(prefix["parent"], []).append(index)
        stops = [self._stop(index) + end.num_tokens for index in self._nodes() for end in self._ends(index)]
        stops += [self._stop(index) for index in self._nodes()]
        self.max_tokens = max(1.0, *stops)

    def _nodes(self) -> list[int | None]:
        return [None, *range(len(self._prefixes))]

    def _stop(self, index: int | None) -> int:
        if index is None:
            return 0
        return int(self._prefixes[index]["start"] + self._prefixes[index]["num_tokens"])

    def _ends(self, index: int | None) -> list[_End]:
        members = self._roots if index is None else self._prefixes[index]["members"]
        ends = []
        if members["num_others"]:
            tokens = members["other_tokens"] / members["other_requests"]
            ends.append(_End("other", members["other_requests"], tokens, members["num_others"]))
        if members["num_tails"]:
            ends.append(_End("tail", members["num_tails"], members["tail_tokens"] / members["num_tails"]))
        return ends

    def paint(self, index: int | None, level: int, y: float) -> float:
        """Everything below a prefix, from `y` down; returns the height it takes."""
        height = 0.0
        order = sorted(
            self._below.get(index, []),
            key=lambda below: -self._prefixes[below]["num_tokens"] * self._prefixes[below]["num_requests"],
        )
        for below in order:
            place = len(self.blocks)
            own = self.paint(below, level + 1, y + height)
            self.blocks.insert(place, self._prefix_block(below, level, y + height, own))
            height += own
        for end in self._ends(index):
            own = ROW_PIXELS + self._pixels_per_request * end.num_requests
            self.blocks.append(self._end_block(end, self._stop(index), level, y + height, own))
            height += own
        return height

    def _prefix_block(self, index: int, level: int, y: float, height: float) -> Block:
        prefix = self._prefixes[index]
        label = f"{prefix['num_tokens']:,} tokens × {prefix['num_requests']:,}"
        saved = prefix["num_tokens"] * (prefix["num_requests"] - 1)
        title = f"{label} requests: {saved:,} tokens not computed again. {prefix['text']}"
        x, width = self._across(prefix["start"], prefix["num_tokens"])
        return Block("prefix", min(level, 4), x, width, y, height, label, prefix["text"], title)

    def _end_block(self, end: _End, start: int, level: int, y: float, height: float) -> Block:
        if end.kind == "other":
            label = f"{end.num_groups:,} smaller groups, {end.num_requests:,} requests"
            title = f"{label}, not drawn one by one"
        else:
            label = f"{end.num_requests:,} × {end.num_tokens:,.0f}"
            title = f"{end.num_requests:,} requests, {end.num_tokens:,.0f} tokens of their own each"
        x, width = self._across(start, end.num_tokens)
        return Block(end.kind, min(level, 4), x, width, y, height, label, "", title)

    def _across(self, start: int, num_tokens: float) -> tuple[float, float]:
        scale = 100 / self.max_tokens
        return round(start * scale, 3), round(num_tokens * scale, 3)
