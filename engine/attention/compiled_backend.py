"""Attention on the CPU by a kernel built for it: one call a layer, threads share out blocks of rows.

Each block meets the items of the work list that cover some of its rows; every thread takes whole blocks, so
that a row's items are merged where they are computed. The dearest blocks come first, which evens out the
threads' ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.kv_pool import KVPool
from engine.attention.work_list import WorkList, build_work_list
from engine.scheduling.batch import StepBatch
from kernels.cpu_attention import MAX_LANES, Attend, Step, layer

Ints = NDArray[np.int64]

_LANES_OF_A_VECTOR = 16  # of AVX-512; a narrower block leaves lanes idle
_BLOCKS_PER_THREAD = 3  # so many that the last ones do not leave a thread waiting for long


class CompiledBackend:
    """Plans steps over one fp32 KV pool.

    windows: for each layer its sliding window, None for full attention.
    num_query_heads: of each layer.
    """

    def __init__(
        self,
        pool: KVPool,
        page_size: int,
        windows: Sequence[int | None],
        num_query_heads: Sequence[int],
        attend: Attend,
    ) -> None:
        self._pool = pool
        self._page_size = page_size
        self._windows = list(windows)
        self._attend = attend
        self._num_kv_heads = min(keys.shape[1] for keys in pool.keys)
        self._group = max(
            heads // keys.shape[1] for heads, keys in zip(num_query_heads, pool.keys, strict=True)
        )

    def plan(self, batch: StepBatch) -> "CompiledStep":
        rows_per_block = self._rows_per_block(batch.num_tokens)
        steps = {
            window: _Planned.of(batch, window, rows_per_block, self._page_size)
            for window in set(self._windows)
        }
        return CompiledStep(self._pool, self._windows, steps, self._attend)

    def _rows_per_block(self, num_rows: int) -> int:
        """As many as fill a block's lanes; fewer, down to one vector's, where threads would wait."""
        most, least = MAX_LANES // self._group, max(_LANES_OF_A_VECTOR // self._group, 1)
        even = -(-num_rows * self._num_kv_heads // (_BLOCKS_PER_THREAD * torch.get_num_threads()))
        return min(max(even, least), most)


class CompiledStep:
    def __init__(
        self,
        pool: KVPool,
        windows: Sequence[int | None],
        steps: "dict[int | None, _Planned]",
        attend: Attend,
    ) -> None:
        self._pool = pool
        self._windows = windows
        self._steps = steps
        self._attend = attend

    def attend(
        self,
        layer_index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query, key, value = map(_with_adjacent_elements, (query, key, value))
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        window = self._windows[layer_index]
        keys, values = self._pool.keys[layer_index], self._pool.values[layer_index]
        self._attend(
            self._steps[window].step,
            layer(
                query, key, value, keys, values, output,
                scaling=scaling, soft_cap=soft_cap, sinks=sinks, window=window,
            ),
        )  # fmt: skip
        return output


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """A step in the kernel's words, and the columns that it points to."""

    step: Step
    columns: tuple[NDArray[np.int32], ...]

    @classmethod
    def of(cls, batch: StepBatch, window: int | None, rows_per_block: int, page_size: int) -> "_Planned":
        work = build_work_list(batch, window)
        edges = _edges(work, batch.num_tokens, rows_per_block)
        block, item = _meetings(work, edges)
        num_blocks = len(edges) - 1
        order = np.argsort(-_costs(work, block, item, edges), kind="stable")
        rank = np.empty(num_blocks, np.int64)
        rank[order] = np.arange(num_blocks)
        by_rank = np.argsort(rank[block], kind="stable")
        item_start = np.concatenate([[0], np.cumsum(np.bincount(rank[block], minlength=num_blocks))])
        columns = tuple(
            np.ascontiguousarray(column, np.int32)
            for column in (
                batch.positions, batch.slots,
                edges[:-1][order], edges[1:][order], item_start, item[by_rank],
                work.row_start, work.row_end, work.segment, work.kv_start, work.kv_end,
                batch.kv_position, batch.page_start, batch.page_ids,
            )
        )  # fmt: skip
        pointers = (column.ctypes.data for column in columns)
        step = Step(batch.num_tokens, num_blocks, page_size, torch.get_num_threads(), *pointers)
        return cls(step, columns)


def _edges(work: WorkList, num_rows: int, most_rows: int) -> Ints:
    """Where blocks begin, and the end: int64 [blocks + 1]. A block ends where a segment's rows end, if there
    is such a place in its second half: rows that share a range are then computed together."""
    ends = np.unique(np.concatenate([[0], work.row_end[~work.causal], [num_rows]]))
    edges = [0]
    while edges[-1] < num_rows:
        limit = edges[-1] + most_rows
        end = int(ends[np.searchsorted(ends, limit, side="right") - 1])
        edges.append(end if end > limit - most_rows // 2 else min(limit, num_rows))
    return np.array(edges)


def _meetings(work: WorkList, edges: Ints) -> tuple[Ints, Ints]:
    """All pairs of a block and an item that have rows in common: int64 [M] each."""
    first = np.searchsorted(edges, work.row_start, side="right") - 1
    count = np.searchsorted(edges, work.row_end, side="left") - first
    item = np.repeat(np.arange(len(work)), count)
    nth = np.arange(len(item)) - np.repeat(np.cumsum(count) - count, count)
    return first[item] + nth, item


def _costs(work: WorkList, block: Ints, item: Ints, edges: Ints) -> NDArray[np.float64]:
    """Query-key pairs of each block, a causal item as if it saw all of its keys."""
    start = np.maximum(work.row_start[item], edges[block])
    end = np.minimum(work.row_end[item], edges[block + 1])
    pairs = (end - start) * (work.kv_end - work.kv_start)[item]
    return np.bincount(block, weights=pairs, minlength=len(edges) - 1).astype(np.float64)


def _with_adjacent_elements(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()
