"""Memory for keys and values: one pair of tensors per layer, cut into pages by the planner's side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """Keys and values of one layer for one token."""

    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim)


class KVPool:
    """keys[layer] is [num_slots, Hkv, Dk], values[layer] [num_slots, Hkv, Dv].

    Slots come first so that a token's heads are written with one copy and a contiguous run of pages
    is a plain slice, which attention reads in place.
    """

    def __init__(
        self, shapes: Sequence[KVShape], num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def empty(num_heads: int, dim: int) -> torch.Tensor:
            return torch.empty(num_slots, num_heads, dim, dtype=dtype, device=device)

        self.num_slots = num_slots
        self.keys = [empty(shape.num_heads, shape.key_dim) for shape in shapes]
        self.values = [empty(shape.num_heads, shape.value_dim) for shape in shapes]

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """key [T, Hkv, Dk] and value [T, Hkv, Dv] to slots int64 [T]."""
        self.keys[layer].index_copy_(0, slots, key)
        self.values[layer].index_copy_(0, slots, value)


def kv_bytes_per_token(shapes: Sequence[KVShape], dtype: torch.dtype) -> int:
    return sum(shape.num_elements for shape in shapes) * dtype.itemsize
