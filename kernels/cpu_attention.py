"""Calls `cpu_attention.c`, attention of one step's layer on the CPU."""

import ctypes
from collections.abc import Callable
from ctypes import Structure, c_float, c_int64, c_void_p
from pathlib import Path

import torch

from kernels.cpu_library import load_library

SOURCE = Path(__file__).with_suffix(".c")
MAX_LANES = 64  # most rows times query heads of a KV head in one block


class Step(Structure):
    """What the layers of one window share; the columns are contiguous int32 and outlive the calls."""

    _fields_ = (
        *((name, c_int64) for name in ("num_rows", "num_blocks", "page_size", "num_threads")),
        *((name, c_void_p) for name in ("positions", "slots", "block_row_start", "block_row_end")),
        *(
            (name, c_void_p)
            for name in ("block_item_start", "block_items", "row_start", "row_end", "segment")
        ),
        *((name, c_void_p) for name in ("kv_start", "kv_end", "kv_position", "page_start", "page_ids")),
    )


class Layer(Structure):
    """One layer's sizes, tensors and the strides of its rows and heads, in floats."""

    _fields_ = (
        *((name, c_int64) for name in ("num_query_heads", "num_kv_heads", "key_dim", "value_dim")),
        *((name, c_void_p) for name in ("query", "key", "value")),
        *(
            (name, c_int64)
            for name in ("query_row", "query_head", "key_row", "key_head", "value_row", "value_head")
        ),
        *((name, c_void_p) for name in ("keys", "values", "output", "sinks")),
        ("window", c_int64),
        ("scaling", c_float),
        ("soft_cap", c_float),
    )


Attend = Callable[[Step, Layer], None]


def layer(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    *,
    scaling: float,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    window: int | None,
) -> Layer:
    """query [T, Hq, D], key [T, Hkv, D] and value [T, Hkv, Dv], each head's elements side by side; the pool's
    keys [slots, Hkv, D] and values [slots, Hkv, Dv], output [T, Hq, Dv] and sinks [Hq] contiguous; all fp32,
    Dv even, Hq / Hkv at most MAX_LANES."""
    return Layer(
        query.shape[1], key.shape[1], key.shape[2], value.shape[2],
        query.data_ptr(), key.data_ptr(), value.data_ptr(),
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        keys.data_ptr(), values.data_ptr(), output.data_ptr(), None if sinks is None else sinks.data_ptr(),
        window or 0, scaling, soft_cap or 0.0,
    )  # fmt: skip


def load(folder: Path) -> Attend:
    """The kernel, built into `folder` unless it is there. Raises CompilerMissing."""
    function = load_library(SOURCE, folder).prefix_attention
    function.argtypes = (ctypes.POINTER(Step), ctypes.POINTER(Layer))

    def attend(step: Step, layer: Layer) -> None:
        if function(ctypes.byref(step), ctypes.byref(layer)):
            raise MemoryError("no memory for attention on the CPU")

    return attend
