"""Where the blocks of the drawn prefix tree lie: across, what follows what in a prompt; down, requests.

A block's width grows with its tokens, but none is too narrow to be seen: a system prompt of thousands of
tokens would leave nothing for what follows it. Within a block the largest groups come first, then what the
outline leaves out, then the requests that go on alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROW_PIXELS = 26  # of the lowest block: room for a line of text
FULL_PIXELS = 300  # the height that requests share out among them beyond that
LEAST_WIDTH = 11.0  # percent; room for `1,500 × 225` where the page is wide
LEAST_WIDTHS = 60.0  # percent; more than that is never given away to least widths
_DRAWN_PIXELS = 640  # the least width of the drawing with labels, see style.css
_CHARACTER_PIXELS = 7
_MARGIN_PIXELS = 14
_PREVIEW_PERCENT = 20  # wide enough for the first words of a prefix


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

    @property
    def is_narrow(self) -> bool:
        """Its label has no room on a phone."""
        return self.width < 3 * LEAST_WIDTH


@dataclass(frozen=True)
class Drawing:
    blocks: list[Block]
    height: float


@dataclass(frozen=True)
class _End:
    """Requests that go on alone, or prefixes that are not listed."""

    kind: str
    num_requests: int
    num_tokens: float  # of each request, on average
    num_groups: int = 0


def draw_tree(outline: dict[str, Any]) -> Drawing:
    """The blocks of an outline as app/batch_telemetry.py stores it."""
    painter = _Painter(outline)
    height = painter.paint(None, 0, 0.0, 0.0)
    return Drawing(painter.blocks, height)


class _Painter:
    def __init__(self, outline: dict[str, Any]) -> None:
        self.blocks: list[Block] = []
        self._prefixes = outline["prefixes"]
        self._roots = outline["roots"]
        self._pixels_per_request = FULL_PIXELS / max(outline["num_requests"], 1)
        self._below: dict[int | None, list[int]] = {}
        for index, prefix in enumerate(self._prefixes):
            self._below.setdefault(prefix["parent"], []).append(index)
        chains = list(self._chains(None, 0, 0.0))
        most_blocks = max(num_blocks for num_blocks, _ in chains)
        self._least_width = min(LEAST_WIDTH, LEAST_WIDTHS / max(most_blocks, 1))
        self._percent_per_token = min(
            (100 - num_blocks * self._least_width) / max(num_tokens, 1.0) for num_blocks, num_tokens in chains
        )

    def _chains(self, index: int | None, num_blocks: int, num_tokens: float) -> Iterator[tuple[int, float]]:
        """Blocks and tokens of every way from the start to an end below a prefix."""
        yield num_blocks, num_tokens
        for end in self._ends(index):
            yield num_blocks + 1, num_tokens + end.num_tokens
        for below in self._below.get(index, []):
            yield from self._chains(below, num_blocks + 1, num_tokens + self._prefixes[below]["num_tokens"])

    def _ends(self, index: int | None) -> list[_End]:
        members = self._roots if index is None else self._prefixes[index]["members"]
        ends = []
        if members["num_others"]:
            tokens = members["other_tokens"] / members["other_requests"]
            ends.append(_End("other", members["other_requests"], tokens, members["num_others"]))
        if members["num_tails"]:
            ends.append(_End("tail", members["num_tails"], members["tail_tokens"] / members["num_tails"]))
        return ends

    def paint(self, index: int | None, level: int, x: float, y: float) -> float:
        """Everything below a prefix, from `x`, `y` on; returns the height it takes."""
        height = 0.0
        order = sorted(
            self._below.get(index, []),
            key=lambda below: -self._prefixes[below]["num_tokens"] * self._prefixes[below]["num_requests"],
        )
        for below in order:
            place, width = len(self.blocks), self._width(self._prefixes[below]["num_tokens"])
            own = self.paint(below, level + 1, x + width, y + height)
            self.blocks.insert(place, self._prefix_block(below, level, x, width, y + height, own))
            height += own
        for end in self._ends(index):
            own = ROW_PIXELS + self._pixels_per_request * end.num_requests
            self.blocks.append(self._end_block(end, level, x, y + height, own))
            height += own
        return height

    def _width(self, num_tokens: float) -> float:
        return self._least_width + num_tokens * self._percent_per_token

    def _prefix_block(self, index: int, level: int, x: float, width: float, y: float, height: float) -> Block:
        prefix = self._prefixes[index]
        num_requests, num_tokens, text = prefix["num_requests"], prefix["num_tokens"], prefix["text"]
        saved = num_tokens * (num_requests - 1)
        title = f"{num_requests:,} requests share {num_tokens:,} tokens: {saved:,} not computed again. {text}"
        label = _label(width, f"{num_requests:,} × {num_tokens:,}")
        shown = text if width >= _PREVIEW_PERCENT else ""
        return Block("prefix", min(level, 4), round(x, 3), round(width, 3), y, height, label, shown, title)

    def _end_block(self, end: _End, level: int, x: float, y: float, height: float) -> Block:
        width = self._width(end.num_tokens)
        label = _label(width, f"{end.num_requests:,} × {end.num_tokens:,.0f}")
        if end.kind == "other":
            title = f"{end.num_groups:,} smaller groups, {end.num_requests:,} requests, not drawn one by one"
        else:
            title = f"{end.num_requests:,} requests, {end.num_tokens:,.0f} tokens of their own each"
        return Block(end.kind, min(level, 4), round(x, 3), round(width, 3), y, height, label, "", title)


def _label(width: float, short: str) -> str:
    """The longest that a block of `width` percent has room for."""
    room = width / 100 * _DRAWN_PIXELS - _MARGIN_PIXELS
    words = (f"{short} tokens", short)
    return next((label for label in words if len(label) * _CHARACTER_PIXELS <= room), "")
