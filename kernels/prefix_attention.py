"""Attention over a work list: prefill chunks, decode tails and every level of prefix in one launch.

An item is up to a tile of query rows over one range of one segment's paged keys and values. The query
heads that share a KV head are stacked into the rows of one matrix:

    stacked row   0      1      2      3      4      5       (GROUP = 3 query heads per KV head)
    query row     r      r      r      r+1    r+1    r+1
    query head    3h     3h+1   3h+2   3h     3h+1   3h+2

Few rows (a decode tail) use a tile of NARROW stacked rows, more a tile of WIDE; one program runs one
item for one KV head. Queries and keys meet in two loops: over the open tokens, which every row of the
item sees, and over the rest, which is checked against positions.
"""

import torch
import triton
import triton.language as tl

# Columns of an item, int32:
#   row_start, num_rows    query rows of the step
#   page_start             where the segment's pages begin in page_ids
#   kv_start, kv_end       tokens of the segment
#   open_end               every row of the item sees the tokens [kv_start, open_end)
#   kv_position            position of the segment's token 0
#   partial_start          first row of the item's partial state; NO_PARTIAL: write the output itself
ITEM_FIELDS = 8
NO_PARTIAL = -1

NARROW = 16  # the fewest rows of a matrix product
# Two warp groups of 64 rows; keys and values one block ahead of the products.
LAUNCH_OPTIONS = {"num_warps": 8, "num_stages": 2}
_FAR = tl.constexpr(1 << 30)  # beyond any position
_LOG2E = tl.constexpr(1.4426950408889634)


def tile_shape(head_dim: int, itemsize: int) -> tuple[int, int]:
    """(stacked rows of a wide tile, tokens of a KV block): the largest without spills on any card of
    docs/kernels.md; `itemsize` in bytes."""
    if itemsize == 4:
        return 32, 16
    return (128, 64) if head_dim <= 128 else (64, 32)


def prefix_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    items: torch.Tensor,
    page_ids: torch.Tensor,
    output: torch.Tensor,
    partial: torch.Tensor,
    partial_lse: torch.Tensor,
    *,
    page_size: int,
    scaling: float,
    soft_cap: float | None = None,
    window: int | None = None,
) -> None:
    """Run a work list: each item's rows of `output`, or of (partial, partial_lse), are written.

    query [T, Hq, Dk], last dimension contiguous, Hq a multiple of Hkv; keys [num_slots, Hkv, Dk] and
    values [num_slots, Hkv, Dv], contiguous, slot = page * page_size + offset; positions int32 [T];
    items int32 [N, ITEM_FIELDS]; page_ids int32 [P]; output [T, Hq, Dv] contiguous;
    partial float32 [_, Hq, Dv], normalised; partial_lse float32 [_, Hq], natural, -inf where a row sees
    nothing of the range. soft_cap: scores become soft_cap * tanh(score / soft_cap). window: a query sees
    keys with 0 <= q - k < window, in positions.
    """
    num_kv_heads, key_dim = keys.shape[1:]
    wide, block_kv = tile_shape(key_dim, query.element_size())
    prefix_attention_kernel[(len(items) * num_kv_heads,)](
        query,
        keys,
        values,
        positions,
        items,
        page_ids,
        output,
        partial,
        partial_lse,
        query.stride(0),
        query.stride(1),
        scaling,
        soft_cap,
        window,
        GROUP=query.shape[1] // num_kv_heads,
        KV_HEADS=num_kv_heads,
        KEY_DIM=key_dim,
        VALUE_DIM=values.shape[2],
        PAGE_SIZE=page_size,
        ITEM_FIELDS=ITEM_FIELDS,
        NARROW=NARROW,
        WIDE=wide,
        BLOCK_KV=block_kv,
        **LAUNCH_OPTIONS,
    )


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _attend_range(
    weighted,
    row_max,
    row_sum,
    query,
    query_position,
    keys_ptr,
    values_ptr,
    pages_ptr,
    kv_start,
    kv_end,
    kv_position,
    scaling,
    soft_cap,
    window,
    CHECKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """Go over tokens [kv_start, kv_end) with a running softmax (base 2); CHECKED: mind what a row may see."""
    key_dims = tl.arange(0, query.shape[1])
    value_dims = tl.arange(0, weighted.shape[1])
    for block_start in range(kv_start, kv_end, BLOCK_KV):
        token = block_start + tl.arange(0, BLOCK_KV)
        inside = token < kv_end if CHECKED else tl.full([BLOCK_KV], True, tl.int1)
        page = tl.load(pages_ptr + token // PAGE_SIZE, mask=inside, other=0)  # [BLOCK_KV]
        # Widened only here: 64-bit slots all the way cost enough registers to spill.
        slot = (page * PAGE_SIZE + token % PAGE_SIZE).to(tl.int64)

        key = tl.load(  # [BLOCK_KV, key dims]
            keys_ptr + (slot * (KV_HEADS * KEY_DIM))[:, None] + key_dims[None, :],
            mask=inside[:, None] & (key_dims < KEY_DIM)[None, :],
            other=0.0,
        )
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling  # [rows, BLOCK_KV]
        if soft_cap is not None:
            score = soft_cap * _tanh(score / soft_cap)
        score *= _LOG2E
        if CHECKED:
            # One comparison a score (more of them spill an AMD card's scalar registers): a token outside is
            # far ahead, and what is ahead is, as an unsigned number, far behind.
            distance = (query_position - kv_position)[:, None] - tl.where(inside, token, _FAR)[None, :]
            as_unsigned = distance.to(tl.uint32)
            visible = distance >= 0 if window is None else as_unsigned < tl.cast(window, tl.uint32)
            score = tl.where(visible, score, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(score, 1))
        # A row that has seen nothing yet has no maximum to subtract.
        base = tl.where(new_max == float("-inf"), 0.0, new_max) if CHECKED else new_max
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(row_max - base)
        row_max = new_max
        row_sum = row_sum * shrink + tl.sum(weight, 1)

        value = tl.load(  # [BLOCK_KV, value dims]
            values_ptr + (slot * (KV_HEADS * VALUE_DIM))[:, None] + value_dims[None, :],
            mask=inside[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        weighted = tl.dot(
            weight.to(value.dtype), value, acc=weighted * shrink[:, None], input_precision="ieee"
        )
    return weighted, row_max, row_sum


@triton.jit
def _attend_item(
    query_ptr,
    keys_ptr,
    values_ptr,
    positions_ptr,
    item_ptr,
    page_ids_ptr,
    output_ptr,
    partial_ptr,
    partial_lse_ptr,
    kv_head,
    query_row_stride,
    query_head_stride,
    scaling,
    soft_cap,
    window,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """One item for one KV head, in a tile of ROWS stacked rows."""
    row_start, num_rows = tl.load(item_ptr), tl.load(item_ptr + 1)
    pages_ptr = page_ids_ptr + tl.load(item_ptr + 2)
    kv_start, kv_end = tl.load(item_ptr + 3), tl.load(item_ptr + 4)
    open_end, kv_position = tl.load(item_ptr + 5), tl.load(item_ptr + 6)
    partial_start = tl.load(item_ptr + 7)

    stacked = tl.arange(0, ROWS)
    row = stacked // GROUP
    head = kv_head * GROUP + stacked % GROUP
    used = row < num_rows
    # Matrix products take powers of two, from 16 on.
    key_dims = tl.arange(0, max(triton.next_power_of_2(KEY_DIM), 16))
    value_dims = tl.arange(0, max(triton.next_power_of_2(VALUE_DIM), 16))

    query_position = tl.load(positions_ptr + row_start + row, mask=used, other=0)  # [ROWS]
    query = tl.load(  # [ROWS, key dims]
        query_ptr
        + ((row_start + row).to(tl.int64) * query_row_stride + head.to(tl.int64) * query_head_stride)[:, None]
        + key_dims[None, :],
        mask=used[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    weighted = tl.zeros([ROWS, max(triton.next_power_of_2(VALUE_DIM), 16)], tl.float32)
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)

    checked_start = kv_start + (open_end - kv_start) // BLOCK_KV * BLOCK_KV
    for CHECKED in tl.static_range(2):
        weighted, row_max, row_sum = _attend_range(
            weighted,
            row_max,
            row_sum,
            query,
            query_position,
            keys_ptr + kv_head * KEY_DIM,
            values_ptr + kv_head * VALUE_DIM,
            pages_ptr,
            checked_start if CHECKED else kv_start,
            kv_end if CHECKED else checked_start,
            kv_position,
            scaling,
            soft_cap,
            window,
            CHECKED,
            KV_HEADS,
            KEY_DIM,
            VALUE_DIM,
            PAGE_SIZE,
            BLOCK_KV,
        )

    seen = row_sum > 0
    result = weighted / tl.where(seen, row_sum, 1.0)[:, None]
    value_mask = used[:, None] & (value_dims < VALUE_DIM)[None, :]
    if partial_start < 0:
        target = (row_start + row).to(tl.int64) * (KV_HEADS * GROUP) + head
        tl.store(
            output_ptr + target[:, None] * VALUE_DIM + value_dims[None, :],
            result.to(output_ptr.dtype.element_ty),
            mask=value_mask,
        )
    else:
        target = (partial_start + row).to(tl.int64) * (KV_HEADS * GROUP) + head
        tl.store(partial_ptr + target[:, None] * VALUE_DIM + value_dims[None, :], result, mask=value_mask)
        lse = tl.where(seen, (row_max + tl.log2(tl.where(seen, row_sum, 1.0))) / _LOG2E, float("-inf"))
        tl.store(partial_lse_ptr + target, lse, mask=used)


@triton.jit
def prefix_attention_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    positions_ptr,
    items_ptr,
    page_ids_ptr,
    output_ptr,
    partial_ptr,
    partial_lse_ptr,
    query_row_stride,
    query_head_stride,
    scaling,
    soft_cap,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ITEM_FIELDS: tl.constexpr,
    NARROW: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """Program p: item p // KV_HEADS for KV head p % KV_HEADS, so the first items start first and the
    heads of one item read neighbouring memory."""
    item_ptr = items_ptr + tl.program_id(0) // KV_HEADS * ITEM_FIELDS
    kv_head = tl.program_id(0) % KV_HEADS
    if tl.load(item_ptr + 1) * GROUP <= NARROW:
        _attend_item(
            query_ptr, keys_ptr, values_ptr, positions_ptr, item_ptr, page_ids_ptr,
            output_ptr, partial_ptr, partial_lse_ptr, kv_head, query_row_stride, query_head_stride,
            scaling, soft_cap, window,
            NARROW, GROUP, KV_HEADS, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_KV,
        )  # fmt: skip
    else:
        _attend_item(
            query_ptr, keys_ptr, values_ptr, positions_ptr, item_ptr, page_ids_ptr,
            output_ptr, partial_ptr, partial_lse_ptr, kv_head, query_row_stride, query_head_stride,
            scaling, soft_cap, window,
            WIDE, GROUP, KV_HEADS, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_KV,
        )  # fmt: skip
