"""Odd shapes for the three kernels of a layer: each against its twin, all against dense attention.

Every buffer stands between guard regions of NaN, and outputs and unused KV slots are NaN, so that a read
or a write outside, and a row left out, show.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.steps import Step, decode_segments, forest, lay_out
from engine.attention.tiles import StepTiles, TileLimits, TilePlan
from kernels.kv_write import kv_write
from kernels.merge_states import merge_states
from kernels.prefix_attention import NO_PARTIAL, prefix_attention, tile_shape
from kernels.reference import (
    reference_attention,
    reference_kv_write,
    reference_merge_states,
    reference_prefix_attention,
)

Forest = list[tuple[int, int, int]]

# Ranges and causal edges one token short of a block, where the loop without masks must stop a block earlier.
TAILS: Forest = [(0, 79, 0), (1, 0, 1), (1, 33, 1), (1, 5, 1)]
CHUNK: Forest = [(0, 14, 50)]
FOUR_LEVELS: Forest = [(0, 9, 3), (1, 1, 0), (2, 40, 5), (3, 0, 1), (3, 7, 2), (1, 12, 0), (2, 3, 1)]
LENGTH_ONE: Forest = [(0, 0, 1), (0, 0, 1)]
LONG: Forest = [(0, 150, 0), (1, 2, 2), (1, 0, 30)]

SCALING = 0.1
# Relative RMS error; bf16 keeps 8 bits.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
_GUARD = 1 << 14  # elements on either side of a buffer


@dataclass(frozen=True)
class Case:
    forest: Forest
    heads: tuple[int, int] = (1, 4)  # KV, query
    dims: tuple[int, int] = (64, 64)  # key, value
    dtype: torch.dtype = torch.float32
    page_size: int = 16
    num_programs: int = 1  # many: short pieces
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    with_empty_items: bool = False


CASES = {
    "tails": Case(TAILS, heads=(2, 8)),
    "chunk, one query head per KV head, dim 80": Case(CHUNK, heads=(2, 2), dims=(80, 80)),
    "four levels, three query heads per KV head": Case(FOUR_LEVELS, heads=(2, 6), page_size=4),
    "length one, dim 8": Case(LENGTH_ONE, heads=(1, 1), dims=(8, 8)),
    "split, seven query heads per KV head, dim 96": Case(LONG, (1, 7), (96, 96), num_programs=4096),
    "dim 128, segments of one page": Case(FOUR_LEVELS, heads=(1, 8), dims=(128, 128), page_size=64),
    "dim 256": Case(CHUNK, heads=(1, 2), dims=(256, 256), num_programs=4096),
    "keys and values of different size": Case(TAILS, heads=(2, 4), dims=(96, 64), page_size=1),
    "float16": Case(FOUR_LEVELS, heads=(1, 3), dtype=torch.float16),
    "float16, 16 query heads, split": Case(LONG, (1, 16), (128, 128), torch.float16, num_programs=4096),
    "window over segment borders": Case(FOUR_LEVELS, heads=(1, 3), page_size=4, window=20),
    "window over a split": Case(LONG, window=30, num_programs=4096),
    "window of one": Case(TAILS, window=1),
    "soft cap": Case(TAILS, soft_cap=2.0),
    "sinks, also on rows with one part": Case([*TAILS, *LENGTH_ONE], sinks=True),
    "items without tokens, items without rows": Case(LONG, num_programs=4096, with_empty_items=True),
    "all at once": Case(LONG, (1, 3), (80, 80), torch.float16, 1, 4096, 25, 2.0, True),
}
# Where a program's worth of time is milliseconds: every type, and groups as they are in real steps.
GPU_CASES = {
    f"{name}, {dtype}": replace(case, dtype=dtype)
    for dtype in TOLERANCES
    for name, case in {**CASES, "groups": Case(decode_segments(4, 16, 500, 90), (8, 32), (128, 128))}.items()
}


def check_case(case: Case, device: torch.device) -> float:
    """Run the case; the output's relative RMS error against dense attention. AssertionError where a
    kernel differs from its twin or touches what it must not."""
    step = lay_out(forest(case.forest), case.page_size, random.Random(0), scattered=True)
    return _Check(case, step, device).run()


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def _with_empty_items(plan: TilePlan) -> TilePlan:
    """Two items more, as no plan has them: the first item with partial rows again, but with no tokens, which
    adds nothing to the merge of its rows; and with no rows, which writes nothing."""
    first = plan.items[np.argmax(plan.items[:, 7] != NO_PARTIAL)]
    row_start, num_rows, _, kv_start = first[:4]
    without_tokens, without_rows = first.copy(), first.copy()
    without_tokens[4:6] = kv_start
    without_tokens[7] = plan.num_partial_rows
    without_rows[1] = 0
    merged = np.searchsorted(plan.merge_rows, np.arange(row_start, row_start + num_rows))
    parts = np.insert(
        plan.merge_parts, plan.merge_starts[merged + 1], plan.num_partial_rows + np.arange(num_rows)
    )
    counts = np.diff(plan.merge_starts)
    counts[merged] += 1
    return TilePlan(
        items=np.concatenate([without_tokens[None], without_rows[None], plan.items]),
        num_partial_rows=plan.num_partial_rows + int(num_rows),
        merge_rows=plan.merge_rows,
        merge_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        merge_parts=parts,
    )


class _Check:
    def __init__(self, case: Case, step: Step, device: torch.device) -> None:
        self._case, self._step, self._device = case, step, device
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._generator = torch.Generator().manual_seed(1)
        num_kv_heads, num_heads = case.heads
        key_dim, value_dim = case.dims
        self._query = self._rows(num_heads, key_dim)
        self._new = self._rows(num_kv_heads, key_dim), self._rows(num_kv_heads, value_dim)
        self._pool = self._pool_of(num_kv_heads, key_dim), self._pool_of(num_kv_heads, value_dim)
        sinks = torch.randn(num_heads, generator=self._generator)
        self._sinks = self._guarded(sinks) if case.sinks else None
        self._plan = self._tiles()

    def run(self) -> float:
        self._check_kv_write()
        output, partial, lse = self._check_attention()
        self._check_merge(output, partial, lse)
        for buffer, before in self._buffers:
            for edge in (slice(None, _GUARD), slice(len(buffer) - _GUARD, None)):
                assert torch.equal(buffer[edge].nan_to_num(7.0), before[edge].nan_to_num(7.0))
        dense = reference_attention(
            self._query,
            *self._pool,
            [slots.to(self._device) for slots in self._step.visible_slots(self._case.window)],
            SCALING,
            self._case.soft_cap,
            self._sinks,
        )
        self._assert_near(output, dense)
        if self._case.soft_cap is None and self._sinks is None:
            self._assert_near(output, self._sdpa())
        return relative_rms(output, dense)

    def _guarded(self, content: torch.Tensor) -> torch.Tensor:
        """On the device between guard regions: NaN around floats; around integers the number that is, as a
        page, the pool's own guard region."""
        is_float = content.dtype.is_floating_point
        guard = torch.nan if is_float else self._step.num_slots // self._case.page_size
        buffer = torch.full((content.numel() + 2 * _GUARD,), guard, dtype=content.dtype, device=self._device)
        inside = buffer[_GUARD : _GUARD + content.numel()].view(content.shape)
        inside.copy_(content)
        self._buffers.append((buffer, buffer.clone()))
        return inside

    def _rows(self, num_heads: int, dim: int) -> torch.Tensor:
        """[T, H, dim], laid out as transformers' layers give it: [H, T, dim]."""
        shape = (num_heads, self._step.batch.num_tokens, dim)
        content = torch.randn(shape, generator=self._generator)
        return self._guarded(content.to(self._case.dtype)).transpose(0, 1)

    def _pool_of(self, num_heads: int, dim: int) -> torch.Tensor:
        """NaN where no token is, and where this step's are still to be written."""
        content = torch.full((self._step.num_slots, num_heads, dim), torch.nan)
        known = self._step.kv_slots
        content[known] = torch.randn(len(known), num_heads, dim, generator=self._generator)
        content[torch.from_numpy(self._step.batch.slots).long()] = torch.nan
        return self._guarded(content.to(self._case.dtype))

    def _tiles(self) -> TilePlan:
        case = self._case
        wide, block_kv = tile_shape(case.dims[0], case.dtype.itemsize)
        num_kv_heads, num_heads = case.heads
        limits = TileLimits(num_heads // num_kv_heads, num_kv_heads, wide, block_kv, case.num_programs)
        plan = StepTiles(self._step.batch).plan(limits, window=case.window, sinks=case.sinks)
        return _with_empty_items(plan) if case.with_empty_items else plan

    def _check_kv_write(self) -> None:
        slots = self._guarded(torch.from_numpy(self._step.batch.slots))
        expected = [tensor.clone() for tensor in self._pool]
        reference_kv_write(*self._new, slots, *expected)
        kv_write(*self._new, slots, *self._pool)
        for written, twin in zip(self._pool, expected, strict=True):
            torch.testing.assert_close(written, twin, rtol=0, atol=0, equal_nan=True)

    def _check_attention(self) -> list[torch.Tensor]:
        case, batch, plan = self._case, self._step.batch, self._plan
        columns = (batch.positions, plan.items, batch.page_ids)
        tables = [self._guarded(torch.from_numpy(column)) for column in columns]

        def run(attention: Callable[..., None]) -> list[torch.Tensor]:
            shapes = [
                ((batch.num_tokens, case.heads[1], case.dims[1]), case.dtype),
                ((plan.num_partial_rows, case.heads[1], case.dims[1]), torch.float32),
                ((plan.num_partial_rows, case.heads[1]), torch.float32),
            ]
            results = [self._guarded(torch.full(shape, torch.nan, dtype=dtype)) for shape, dtype in shapes]
            attention(
                self._query,
                *self._pool,
                *tables,
                *results,
                page_size=case.page_size,
                scaling=SCALING,
                soft_cap=case.soft_cap,
                window=case.window,
            )
            return results

        actual, expected = run(prefix_attention), run(reference_prefix_attention)
        for one, twin in zip(actual, expected, strict=True):
            assert torch.equal(one.isnan(), twin.isnan())  # written where it must be, and only there
            assert torch.equal(one.isneginf(), twin.isneginf())
            self._assert_near(one.nan_to_num(neginf=0), twin.nan_to_num(neginf=0))
        return actual

    def _check_merge(self, output: torch.Tensor, partial: torch.Tensor, lse: torch.Tensor) -> None:
        columns = (self._plan.merge_rows, self._plan.merge_starts, self._plan.merge_parts)
        table = [self._guarded(torch.from_numpy(column)) for column in columns]
        expected = output.clone()
        reference_merge_states(partial, lse, *table, expected, self._sinks)
        if len(self._plan.merge_rows):
            merge_states(partial, lse, *table, output, self._sinks)
        self._assert_near(output, expected)

    def _sdpa(self) -> torch.Tensor:
        """Row by row, in float32."""
        rows = []
        for row, slots in zip(self._query.float(), self._step.visible_slots(self._case.window), strict=True):
            key, value = (pool[slots.to(self._device)].float().transpose(0, 1)[None] for pool in self._pool)
            rows.append(
                torch.nn.functional.scaled_dot_product_attention(
                    row[None, :, None], key, value, scale=SCALING, enable_gqa=True
                )[0, :, 0]
            )
        return torch.stack(rows)

    def _assert_near(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        error = relative_rms(actual, expected)
        assert error < TOLERANCES[self._case.dtype], f"relative RMS error {error:.2e}"
