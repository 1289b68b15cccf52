"""Attention by our Triton kernels: KV write, one launch over the step's tiles, merge."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from engine.attention.kv_pool import KVPool
from engine.attention.tiles import StepTiles, TileLimits
from engine.scheduling.batch import StepBatch
from engine.staging import to_device
from kernels.kv_write import kv_write
from kernels.merge_states import merge_states
from kernels.prefix_attention import prefix_attention, tile_shape


@dataclass(frozen=True, slots=True)
class _Kind:
    """What layers with the same tiles have in common."""

    limits: TileLimits
    window: int | None
    has_sinks: bool


@dataclass(frozen=True, slots=True, eq=False)
class _DeviceTiles:
    """A TilePlan on the device."""

    num_partial_rows: int
    items: torch.Tensor
    merge_rows: torch.Tensor
    merge_starts: torch.Tensor
    merge_parts: torch.Tensor


class TritonBackend:
    """Plans steps over one KV pool.

    windows, num_query_heads, has_sinks: for each layer its sliding window (None for full attention), its
        query heads, and whether it has attention sinks (None: no layer has).
    num_programs: attention programs the card runs at a time (one per multiprocessor).
    """

    def __init__(
        self,
        pool: KVPool,
        page_size: int,
        windows: Sequence[int | None],
        num_query_heads: Sequence[int],
        num_programs: int,
        has_sinks: Sequence[bool] | None = None,
    ) -> None:
        self._pool = pool
        self._page_size = page_size
        self._num_programs = num_programs
        has_sinks = has_sinks or [False] * len(windows)
        layers = zip(pool.keys, windows, num_query_heads, has_sinks, strict=True)
        self._kinds = [self._kind(*layer) for layer in layers]

    def plan(self, batch: StepBatch) -> "TritonStep":
        tiles_of_step = StepTiles(batch)
        plans = {
            kind: tiles_of_step.plan(kind.limits, window=kind.window, sinks=kind.has_sinks)
            for kind in set(self._kinds)
        }
        columns = [batch.positions, batch.slots, batch.page_ids]
        for plan in plans.values():
            columns += [plan.items, plan.merge_rows, plan.merge_starts, plan.merge_parts]
        staged = iter(to_device(columns, torch.int32, self._pool.keys[0].device))
        positions, slots, page_ids = islice(staged, 3)
        tiles = {
            kind: _DeviceTiles(plan.num_partial_rows, *islice(staged, 4)) for kind, plan in plans.items()
        }
        return TritonStep(self._pool, self._page_size, positions, slots, page_ids, self._kinds, tiles)

    def _kind(self, keys: torch.Tensor, window: int | None, num_heads: int, has_sinks: bool) -> _Kind:
        num_kv_heads, head_dim = keys.shape[1:]
        wide, block_kv = tile_shape(head_dim, keys.element_size())
        limits = TileLimits(num_heads // num_kv_heads, num_kv_heads, wide, block_kv, self._num_programs)
        return _Kind(limits, window, has_sinks)


class TritonStep:
    def __init__(
        self,
        pool: KVPool,
        page_size: int,
        positions: torch.Tensor,
        slots: torch.Tensor,
        page_ids: torch.Tensor,
        kinds: Sequence[_Kind],
        tiles: dict[_Kind, _DeviceTiles],
    ) -> None:
        self._pool = pool
        self._page_size = page_size
        self._positions = positions
        self._slots = slots
        self._page_ids = page_ids
        self._kinds = kinds
        self._tiles = tiles

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Three launches, none of which waits for the host."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        kind = self._kinds[layer]
        assert kind.has_sinks == (sinks is not None), f"layer {layer}: sinks {sinks}, planned {kind}"
        tiles = self._tiles[kind]
        num_rows, num_heads, _ = query.shape
        value_dim = values.shape[2]
        output = query.new_empty(num_rows, num_heads, value_dim)
        partial = query.new_empty(tiles.num_partial_rows, num_heads, value_dim, dtype=torch.float32)
        partial_lse = query.new_empty(tiles.num_partial_rows, num_heads, dtype=torch.float32)
        kv_write(key, value, self._slots, keys, values)
        prefix_attention(
            query,
            keys,
            values,
            self._positions,
            tiles.items,
            self._page_ids,
            output,
            partial,
            partial_lse,
            page_size=self._page_size,
            scaling=scaling,
            soft_cap=soft_cap,
            window=kind.window,
        )
        if len(tiles.merge_rows):
            merge_states(
                partial, partial_lse, tiles.merge_rows, tiles.merge_starts, tiles.merge_parts, output, sinks
            )
        return output
