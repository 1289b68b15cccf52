"""Naive torch twins of the attention kernels: slow, plain, the oracle of every fast path."""

from collections.abc import Sequence

import torch


def reference_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible_slots: Sequence[torch.Tensor],
    scaling: float,
) -> torch.Tensor:
    """Attend each row to its own list of KV slots, in float64.

    query [T, Hq, D]; keys [num_slots, Hkv, D] and values [num_slots, Hkv, Dv], Hq a multiple of Hkv;
    visible_slots: for each row int64 [num_visible], at least one. Returns [T, Hq, Dv] in query's dtype.
    """
    group = query.shape[1] // keys.shape[1]
    rows = []
    for row, slots in zip(query.double(), visible_slots, strict=True):
        key = keys[slots].double().repeat_interleave(group, dim=1)
        value = values[slots].double().repeat_interleave(group, dim=1)
        weights = torch.softmax(torch.einsum("hd,nhd->hn", row, key) * scaling, dim=-1)
        rows.append(torch.einsum("hn,nhd->hd", weights, value))
    return torch.stack(rows).to(query.dtype)
