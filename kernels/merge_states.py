"""Merge of partial attention states by log-sum-exp; attention sinks enter here, once."""

import torch
import triton
import triton.language as tl

_TILE_ELEMENTS = 2048  # of one partial state in registers: 16 a thread


def merge_states(
    partial: torch.Tensor,
    partial_lse: torch.Tensor,
    rows: torch.Tensor,
    starts: torch.Tensor,
    parts: torch.Tensor,
    output: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> None:
    """output[rows[i]] = the softmax-weighted mean of the states parts[starts[i]:starts[i + 1]].

    partial float32 [P, Hq, Dv], normalised; partial_lse float32 [P, Hq], natural, -inf where a part saw
    nothing; rows int32 [R]; starts int32 [R + 1]; parts int32 [M]; output [T, Hq, Dv], contiguous.
    sinks [Hq]: a score per head that takes part in the softmax and carries no value.
    """
    num_heads, value_dim = output.shape[1:]
    block_dim = triton.next_power_of_2(value_dim)
    block_heads = min(triton.next_power_of_2(num_heads), max(_TILE_ELEMENTS // block_dim, 1))
    merge_states_kernel[(len(rows), triton.cdiv(num_heads, block_heads))](
        partial,
        partial_lse,
        rows,
        starts,
        parts,
        output,
        sinks,
        HEADS=num_heads,
        VALUE_DIM=value_dim,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=4,
    )


@triton.jit
def merge_states_kernel(
    partial_ptr,
    partial_lse_ptr,
    rows_ptr,
    starts_ptr,
    parts_ptr,
    output_ptr,
    sinks_ptr,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Program (i, b): the i-th row to merge, its b-th block of heads."""
    row = tl.load(rows_ptr + tl.program_id(0))
    start, end = tl.load(starts_ptr + tl.program_id(0)), tl.load(starts_ptr + tl.program_id(0) + 1)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dim = tl.arange(0, BLOCK_DIM)
    head_used = head < HEADS
    used = head_used[:, None] & (dim < VALUE_DIM)[None, :]

    if sinks_ptr is None:
        lse_max = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
        weight_sum = tl.zeros([BLOCK_HEADS], tl.float32)
    else:
        lse_max = tl.load(sinks_ptr + head, mask=head_used, other=0.0).to(tl.float32)  # [BLOCK_HEADS]
        weight_sum = tl.full([BLOCK_HEADS], 1.0, tl.float32)
    merged = tl.zeros([BLOCK_HEADS, BLOCK_DIM], tl.float32)

    for i in range(start, end):
        part_head = tl.load(parts_ptr + i).to(tl.int64) * HEADS + head
        lse = tl.load(partial_lse_ptr + part_head, mask=head_used, other=0.0)  # [BLOCK_HEADS]
        part = tl.load(  # [BLOCK_HEADS, BLOCK_DIM]
            partial_ptr + part_head[:, None] * VALUE_DIM + dim[None, :], mask=used, other=0.0
        )
        new_max = tl.maximum(lse_max, lse)
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
        shrink, weight = tl.exp(lse_max - base), tl.exp(lse - base)
        lse_max = new_max
        weight_sum = weight_sum * shrink + weight
        merged = merged * shrink[:, None] + part * weight[:, None]

    result = merged / weight_sum[:, None]
    target = (row.to(tl.int64) * HEADS + head)[:, None] * VALUE_DIM + dim[None, :]
    tl.store(output_ptr + target, result.to(output_ptr.dtype.element_ty), mask=used)
