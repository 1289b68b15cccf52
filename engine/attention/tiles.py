"""From a work list to the tiles of one launch: rows cut to a program's size, long ranges split.

    work item        rows 0..99 of segment S, tokens 0..5000
    row tiles        rows 0..31   32..63   64..95   96..99          (what one program holds)
    pieces of KV     0..2496 | 2496..5000 of each                   (so that tiles cost about the same)

A tile whose rows no other tile covers writes their output itself; the states of all others go through
partial rows and are merged.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.attention.split_cost import item_tokens, piece_tokens
from engine.attention.work_list import WorkList, build_work_list
from engine.scheduling.batch import StepBatch
from kernels.prefix_attention import ITEM_FIELDS, NO_PARTIAL

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TileLimits:
    """What shapes the tiles of a layer.

    group: query heads per KV head. wide: stacked rows of the largest tile. block_kv: tokens of a KV block.
    num_programs: how many programs the card runs at a time.
    """

    group: int
    num_kv_heads: int
    wide: int
    block_kv: int
    num_programs: int


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """The arguments of the attention and merge kernels that a step decides, int32.

    items: [N, ITEM_FIELDS], costliest first.
    num_partial_rows: rows of partial state that the items write.
    merge_rows, merge_starts, merge_parts: [R], [R + 1], [num_partial_rows]; row merge_rows[i] is the merge
        of the partial rows merge_parts[merge_starts[i]:merge_starts[i + 1]].
    """

    items: NDArray[np.int32]
    num_partial_rows: int
    merge_rows: NDArray[np.int32]
    merge_starts: NDArray[np.int32]
    merge_parts: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class _Tiles:
    """Columns [N] of the tiles; tokens [kv_start, open_end) are seen by all rows of a tile."""

    row_start: Ints
    num_rows: Ints
    segment: Ints
    kv_start: Ints
    open_end: Ints
    kv_end: Ints

    def take(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> "_Tiles":
        columns = (self.row_start, self.num_rows, self.segment, self.kv_start, self.open_end, self.kv_end)
        return _Tiles(*(column[chosen] for column in columns))


class StepTiles:
    """Cuts one step's work list into tiles for each kind of layer; what kinds share is worked out once."""

    def __init__(self, batch: StepBatch) -> None:
        self._batch = batch
        self._work = build_work_list(batch)
        self._row_tiles: dict[int, _Tiles] = {}  # by query rows of the largest tile

    def plan(self, limits: TileLimits, *, window: int | None = None, sinks: bool = False) -> TilePlan:
        """window: a query sees only keys with 0 <= q - k < window (positions). sinks: the merge adds
        attention sinks, so every row goes through it."""
        tile_rows = max(1, limits.wide // limits.group)
        if tile_rows not in self._row_tiles:
            self._row_tiles[tile_rows] = _row_tiles(self._work, tile_rows)
        tiles = self._row_tiles[tile_rows]
        if window is not None:
            tiles = _within_window(tiles, self._batch, window)
        tiles = _split(tiles, limits)
        cost = item_tokens(tiles.kv_end - tiles.kv_start, tiles.num_rows * limits.group)
        tiles = tiles.take(np.argsort(-cost, kind="stable"))
        return _with_partials(tiles, self._batch, sinks)


def _repeat(counts: Ints) -> tuple[Ints, Ints]:
    """[N] counts to (owner, index within the owner) of each of their sum."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - _starts(counts)[owner]


def _starts(counts: NDArray[np.integer] | NDArray[np.bool_]) -> Ints:
    """[N] counts to [N + 1]: where each begins, and where the last ends."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _row_tiles(work: WorkList, tile_rows: int) -> _Tiles:
    owner, index = _repeat(-(-(work.row_end - work.row_start) // tile_rows))
    row_start = work.row_start[owner] + index * tile_rows
    rows_after = np.maximum(work.row_end[owner] - row_start - tile_rows, 0)
    num_rows = work.row_end[owner] - row_start - rows_after
    # Row i of an own item's n sees tokens below kv_end - n + i + 1 (work_list.py).
    causal = work.causal[owner]
    kv_end = work.kv_end[owner] - np.where(causal, rows_after, 0)
    open_end = kv_end - np.where(causal, num_rows - 1, 0)
    return _Tiles(row_start, num_rows, work.segment[owner], work.kv_start[owner], open_end, kv_end)


def _within_window(tiles: _Tiles, batch: StepBatch, window: int) -> _Tiles:
    """Without the tokens that no row of a tile still sees; nothing is open where some row misses one."""
    bounds = np.stack([tiles.row_start, tiles.row_start + tiles.num_rows], axis=1).ravel()
    positions = np.append(batch.positions, np.int32(0))  # reduceat wants every index inside
    first, last = (f.reduceat(positions, bounds)[::2] for f in (np.minimum, np.maximum))
    kv_position = batch.kv_position[tiles.segment]
    kv_start = np.maximum(tiles.kv_start, first - window + 1 - kv_position)
    open_end = np.where(last - (kv_position + kv_start) < window, tiles.open_end, kv_start)
    clipped = _Tiles(tiles.row_start, tiles.num_rows, tiles.segment, kv_start, open_end, tiles.kv_end)
    return clipped.take(kv_start < tiles.kv_end)


def _split(tiles: _Tiles, limits: TileLimits) -> _Tiles:
    """Long ranges in pieces of equal length, whole KV blocks each."""
    piece = piece_tokens(
        tiles.kv_end - tiles.kv_start,
        tiles.num_rows,
        group=limits.group,
        num_kv_heads=limits.num_kv_heads,
        num_programs=limits.num_programs,
        block_kv=limits.block_kv,
    )
    blocks = -(-(tiles.kv_end - tiles.kv_start) // limits.block_kv)
    pieces = -(-blocks // (piece // limits.block_kv))
    owner, index = _repeat(pieces)
    cut = tiles.take(owner)
    first = cut.kv_start + blocks[owner] * index // pieces[owner] * limits.block_kv
    after = cut.kv_start + blocks[owner] * (index + 1) // pieces[owner] * limits.block_kv
    kv_end = np.minimum(after, cut.kv_end)
    open_end = np.clip(cut.open_end, first, kv_end)
    return _Tiles(cut.row_start, cut.num_rows, cut.segment, first, open_end, kv_end)


def _with_partials(tiles: _Tiles, batch: StepBatch, sinks: bool) -> TilePlan:
    row_end = tiles.row_start + tiles.num_rows
    num_rows = batch.num_tokens
    starting, ending = (np.bincount(edge, minlength=num_rows + 1) for edge in (tiles.row_start, row_end))
    tiles_of_row = np.cumsum(starting - ending)[:num_rows]
    merged_before = _starts((tiles_of_row > 1) | sinks)
    partial = np.flatnonzero(merged_before[row_end] > merged_before[tiles.row_start])

    counts = tiles.num_rows[partial]
    partial_start = np.full(len(row_end), NO_PARTIAL)
    partial_start[partial] = _starts(counts)[:-1]
    owner, index = _repeat(counts)
    row_of_part = tiles.row_start[partial][owner] + index
    parts_of_row = np.bincount(row_of_part, minlength=num_rows)
    merge_rows = np.flatnonzero(parts_of_row)

    items = np.empty((len(row_end), ITEM_FIELDS), np.int32)
    items.T[:] = (
        tiles.row_start,
        tiles.num_rows,
        batch.page_start[tiles.segment],
        tiles.kv_start,
        tiles.kv_end,
        tiles.open_end,
        batch.kv_position[tiles.segment],
        partial_start,
    )
    return TilePlan(
        items=items,
        num_partial_rows=len(row_of_part),
        merge_rows=merge_rows.astype(np.int32),
        merge_starts=_starts(parts_of_row[merge_rows]).astype(np.int32),
        merge_parts=np.argsort(row_of_part, kind="stable").astype(np.int32),
    )
