"""Naive torch twins of the attention kernels: slow, plain, the oracle of every fast path."""

from collections.abc import Sequence

import torch


def reference_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible_slots: Sequence[torch.Tensor],
    scaling: float,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend each row to its own list of KV slots, in float64.

    query [T, Hq, D]; keys [num_slots, Hkv, D] and values [num_slots, Hkv, Dv], Hq a multiple of Hkv;
    visible_slots: for each row int64 [num_visible], at least one; soft_cap: scores become
    soft_cap * tanh(score / soft_cap); sinks [Hq]: a score per head that carries no value.
    Returns [T, Hq, Dv] in query's dtype.
    """
    rows = []
    for row, slots in zip(query, visible_slots, strict=True):
        output, lse = _attend(row, keys[slots], values[slots], scaling, soft_cap)
        if sinks is not None:
            output *= torch.sigmoid(lse - sinks.double())[:, None]
        rows.append(output)
    return torch.stack(rows).to(query.dtype)


def reference_prefix_attention(
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
    """prefix_attention, item by item and row by row."""
    for item in items.tolist():
        row_start, num_rows, page_start, kv_start, kv_end, _, kv_position, partial_start = item
        tokens = torch.arange(kv_start, kv_end, device=page_ids.device)
        slots = page_ids[page_start + tokens // page_size].long() * page_size + tokens % page_size
        for i in range(num_rows):
            distance = int(positions[row_start + i]) - kv_position - tokens
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            visible = slots[seen]
            state, lse = _attend(query[row_start + i], keys[visible], values[visible], scaling, soft_cap)
            if partial_start < 0:
                output[row_start + i] = state
            else:
                partial[partial_start + i], partial_lse[partial_start + i] = state, lse


def reference_merge_states(
    partial: torch.Tensor,
    partial_lse: torch.Tensor,
    rows: torch.Tensor,
    starts: torch.Tensor,
    parts: torch.Tensor,
    output: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> None:
    """merge_states, row by row."""
    for i, row in enumerate(rows.tolist()):
        of_row = parts[starts[i] : starts[i + 1]].long()
        lse = partial_lse[of_row].double()
        scores = lse if sinks is None else torch.cat([lse, sinks.double()[None]])
        weights = torch.softmax(scores, dim=0)[: len(of_row)]
        output[row] = (weights[:, :, None] * partial[of_row].double()).sum(0)


def reference_kv_write(
    key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """kv_write, by indexing."""
    keys[slots.long()] = key
    values[slots.long()] = value


def _attend(
    row: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, soft_cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row [Hq, D] over n tokens: output [Hq, Dv] and natural log-sum-exp [Hq], in float64; zeros and
    -inf where n is 0."""
    group = row.shape[0] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("hd,nhd->hn", row.double(), key) * scaling
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    return torch.einsum("hn,nhd->hd", torch.softmax(scores, -1), value), torch.logsumexp(scores, -1)
