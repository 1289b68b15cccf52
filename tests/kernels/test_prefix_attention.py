"""The three kernels of a layer on the interpreter, against their twins and against torch's SDPA."""

import random
from dataclasses import dataclass

import pytest
import torch

from engine.attention.tiles import TileLimits, TilePlan, plan_tiles
from engine.attention.work_list import build_work_list
from kernels.kv_write import kv_write
from kernels.merge_states import merge_states
from kernels.prefix_attention import prefix_attention, tile_shape
from kernels.reference import (
    reference_attention,
    reference_kv_write,
    reference_merge_states,
    reference_prefix_attention,
)
from tests.engine.attention.forests import Node, Step, lay_out
from tests.kernels.guarded import GuardedMemory

# (depth, tokens computed before, rows in this step) of segments in preorder
Forest = list[tuple[int, int, int]]

TAILS: Forest = [(0, 70, 0), (1, 0, 1), (1, 33, 1), (1, 5, 1)]
CHUNK: Forest = [(0, 17, 50)]
FOUR_LEVELS: Forest = [(0, 9, 3), (1, 1, 0), (2, 40, 5), (3, 0, 1), (3, 7, 2), (1, 12, 0), (2, 3, 1)]
LENGTH_ONE: Forest = [(0, 0, 1), (0, 0, 1)]
LONG: Forest = [(0, 150, 0), (1, 2, 2), (1, 0, 30)]


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


CASES = {
    "tails": Case(TAILS, heads=(2, 8)),
    "chunk, one query head per KV head, dim 80": Case(CHUNK, heads=(2, 2), dims=(80, 80)),
    "four levels, three query heads per KV head": Case(FOUR_LEVELS, heads=(2, 6), page_size=4),
    "length one, dim 8": Case(LENGTH_ONE, heads=(1, 1), dims=(8, 8)),
    "split, seven query heads per KV head, dim 96": Case(LONG, (1, 7), (96, 96), num_programs=4096),
    "dim 128, segments of one page": Case(FOUR_LEVELS, heads=(1, 8), dims=(128, 128), page_size=64),
    "dim 256": Case(CHUNK, heads=(1, 2), dims=(256, 256), num_programs=4096),
    "keys and values of different size": Case(TAILS, dims=(96, 64), page_size=1),
    "float16": Case(FOUR_LEVELS, heads=(1, 3), dtype=torch.float16),
    "float16, 16 query heads, split": Case(LONG, (1, 16), (128, 128), torch.float16, num_programs=4096),
    "window over segment borders": Case(FOUR_LEVELS, heads=(1, 3), page_size=4, window=20),
    "window over a split": Case(LONG, window=30, num_programs=4096),
    "window of one": Case(TAILS, window=1),
    "soft cap": Case(TAILS, soft_cap=2.0),
    "sinks, also on rows with one part": Case([*TAILS, *LENGTH_ONE], sinks=True),
    "all at once": Case(LONG, (1, 3), (80, 80), torch.float16, 1, 4096, 25, 2.0, True),
}


@dataclass
class Inputs:
    step: Step
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    sinks: torch.Tensor | None


def _step(case: Case) -> Step:
    nodes: list[Node] = []
    for depth, num_computed, num_rows in case.forest:
        parent = next((node for node in reversed(nodes) if node.depth == depth - 1), None)
        nodes.append(Node(depth, parent, num_computed, num_rows))
    return lay_out(nodes, random.Random(0), case.page_size, scattered=True, window=case.window)


def _inputs(case: Case, memory: GuardedMemory, step: Step) -> Inputs:
    """Rows laid out as transformers' layers give them, [H, T, D]; a pool that is NaN where no token is."""
    (num_kv_heads, num_heads), (key_dim, value_dim) = case.heads, case.dims
    generator = torch.Generator().manual_seed(1)

    def rows(num_heads: int, dim: int) -> torch.Tensor:
        content = torch.randn(num_heads, step.batch.num_tokens, dim, generator=generator)
        return memory.copy(content.to(case.dtype)).transpose(0, 1)

    def pool(dim: int) -> torch.Tensor:
        content = memory.poisoned((step.num_slots, num_kv_heads, dim), case.dtype)
        known = torch.randn(len(step.kv_slots), num_kv_heads, dim, generator=generator)
        content[step.kv_slots] = known.to(case.dtype)
        content[torch.from_numpy(step.batch.slots).long()] = torch.nan  # this step's: kv_write's work
        return content

    return Inputs(
        step,
        query=rows(num_heads, key_dim),
        key=rows(num_kv_heads, key_dim),
        value=rows(num_kv_heads, value_dim),
        keys=pool(key_dim),
        values=pool(value_dim),
        sinks=memory.copy(torch.randn(num_heads, generator=generator)) if case.sinks else None,
    )


def _plan(case: Case, step: Step) -> TilePlan:
    wide, block_kv = tile_shape(case.dims[0], case.dtype.itemsize)
    num_kv_heads, num_heads = case.heads
    limits = TileLimits(num_heads // num_kv_heads, num_kv_heads, wide, block_kv, case.num_programs)
    work = build_work_list(step.batch, case.window)
    return plan_tiles(step.batch, work, limits, window=case.window, sinks=case.sinks)


def _sdpa(case: Case, inputs: Inputs) -> torch.Tensor:
    """Row by row, in float32."""
    rows = []
    for row, slots in zip(inputs.query.float(), inputs.step.visible_slots, strict=True):
        key, value = (pool[slots].float().transpose(0, 1)[None] for pool in (inputs.keys, inputs.values))
        rows.append(
            torch.nn.functional.scaled_dot_product_attention(
                row[None, :, None], key, value, scale=0.1, enable_gqa=True
            )[0, :, 0]
        )
    return torch.stack(rows)


def _relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("name", CASES)
def test_three_launches_equal_their_twins_and_dense_attention(name):
    case = CASES[name]
    tolerance = 1e-5 if case.dtype == torch.float32 else 1e-3
    step = _step(case)
    memory = GuardedMemory(int_guard=step.num_slots // case.page_size)  # as a page: the pool's guard region
    inputs = _inputs(case, memory, step)
    plan = _plan(case, step)
    batch = step.batch
    columns = (batch.slots, batch.positions, batch.page_ids, plan.items)
    slots, positions, page_ids, items = (memory.copy(torch.from_numpy(column)) for column in columns)

    expected_keys, expected_values = inputs.keys.clone(), inputs.values.clone()
    reference_kv_write(inputs.key, inputs.value, slots, expected_keys, expected_values)
    kv_write(inputs.key, inputs.value, slots, inputs.keys, inputs.values)
    torch.testing.assert_close(inputs.keys, expected_keys, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(inputs.values, expected_values, rtol=0, atol=0, equal_nan=True)

    def results() -> list[torch.Tensor]:
        heads, dim = case.heads[1], case.dims[1]
        return [
            memory.poisoned((batch.num_tokens, heads, dim), case.dtype),
            memory.poisoned((plan.num_partial_rows, heads, dim), torch.float32),
            memory.poisoned((plan.num_partial_rows, heads), torch.float32),
        ]

    actual, expected = results(), results()
    for attention, result in ((prefix_attention, actual), (reference_prefix_attention, expected)):
        attention(
            inputs.query, inputs.keys, inputs.values, positions, items, page_ids, *result,
            page_size=case.page_size, scaling=0.1, soft_cap=case.soft_cap, window=case.window,
        )  # fmt: skip
    (output, partial, lse), (_, expected_partial, expected_lse) = actual, expected
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())  # written where it must be, and only there
        assert _relative_rms(one.nan_to_num(neginf=0), other.nan_to_num(neginf=0)) < tolerance
    assert torch.equal(lse.isneginf(), expected_lse.isneginf())

    table = (plan.merge_rows, plan.merge_starts, plan.merge_parts)
    rows, starts, parts = (memory.copy(torch.from_numpy(column)) for column in table)
    merged = output.clone()
    if len(rows):
        reference_merge_states(expected_partial, expected_lse, rows, starts, parts, merged, inputs.sinks)
        merge_states(partial, lse, rows, starts, parts, output, inputs.sinks)
    memory.assert_guards_intact()

    assert _relative_rms(output, merged) < tolerance
    dense = reference_attention(
        inputs.query, inputs.keys, inputs.values, step.visible_slots, 0.1, case.soft_cap, inputs.sinks
    )
    assert _relative_rms(output, dense) < tolerance
    if case.soft_cap is None and not case.sinks:
        assert _relative_rms(output, _sdpa(case, inputs)) < tolerance
