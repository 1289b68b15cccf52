"""Keys and values of a step's rows into their slots of the paged pool."""

import torch
import triton
import triton.language as tl

_BLOCK_ROWS = 32


def kv_write(
    key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """keys[slots] = key; values[slots] = value.

    key [T, Hkv, Dk] and value [T, Hkv, Dv], any strides with the last dimension contiguous; slots
    int32 [T], all different; keys [num_slots, Hkv, Dk] and values [num_slots, Hkv, Dv], contiguous.
    """
    num_rows, num_heads, key_dim = key.shape
    value_dim = value.shape[2]
    kv_write_kernel[(triton.cdiv(num_rows, _BLOCK_ROWS), num_heads)](
        key,
        value,
        slots,
        keys,
        values,
        num_rows,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        KV_HEADS=num_heads,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        BLOCK_ROWS=_BLOCK_ROWS,
        num_warps=4,
    )


@triton.jit
def _copy_rows(
    source_ptr,
    pool_ptr,
    row,
    slot,
    used,
    row_stride,
    head_stride,
    head,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    dim = tl.arange(0, triton.next_power_of_2(DIM))
    mask = used[:, None] & (dim < DIM)[None, :]
    source = row.to(tl.int64) * row_stride + head.to(tl.int64) * head_stride
    copied = tl.load(source_ptr + source[:, None] + dim[None, :], mask=mask)  # [rows, DIM]
    tl.store(pool_ptr + ((slot * KV_HEADS + head) * DIM)[:, None] + dim[None, :], copied, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def kv_write_kernel(
    key_ptr,
    value_ptr,
    slots_ptr,
    keys_ptr,
    values_ptr,
    num_rows,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Program (b, h): the b-th block of rows, KV head h."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head = tl.program_id(1)
    used = row < num_rows
    slot = tl.load(slots_ptr + row, mask=used, other=0).to(tl.int64)  # [BLOCK_ROWS]
    _copy_rows(
        key_ptr, keys_ptr, row, slot, used, key_row_stride, key_head_stride, head, KV_HEADS, KEY_DIM
    )  # fmt: skip
    _copy_rows(
        value_ptr, values_ptr, row, slot, used, value_row_stride, value_head_stride, head, KV_HEADS, VALUE_DIM
    )
