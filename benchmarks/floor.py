"""The arithmetic floor of a job on this CPU: its operations over the rates measured here and now.

    floor = linear operations / GEMM rate + attention operations / SDPA rate

Linear operations count every row that perfect token-level sharing still computes; the LM head counts
sampled rows only. Attention operations count each computed row against the keys it can see. Rates are
medians over the model's own shapes with many rows, the best case for both.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.cost_model import JobWork, ModelShape


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations per second, all threads together."""

    gemm: float
    attention: float


def floor_seconds(shape: ModelShape, work: JobWork, rates: Rates) -> float:
    linear = work.rows * shape.ops_per_row + work.sampled_rows * 2 * shape.hidden * shape.vocab
    attention = work.pairs * shape.ops_per_pair
    return linear / rates.gemm + attention / rates.attention


def measure_rates(shape: ModelShape, repeats: int = 5) -> Rates:
    """About ten seconds: the model's matrices with 512 rows, and 512 queries over 1024 keys."""
    rows = torch.randn(512, shape.hidden)
    wide = torch.randn(512, shape.intermediate)
    weights = [torch.randn(out, into) for out, into in shape.layer_weights]

    def layer() -> None:
        for weight in weights:
            torch.nn.functional.linear(wide if weight.shape[1] == shape.intermediate else rows, weight)

    query = torch.randn(1, shape.num_heads, 512, shape.head_dim)
    key, value = torch.randn(2, 1, shape.num_kv_heads, 1024, shape.head_dim)

    def attention() -> None:
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)

    gemm_ops = 2 * 512 * sum(weight.numel() for weight in weights)
    attention_ops = 4 * 512 * 1024 * shape.num_heads * shape.head_dim
    return Rates(gemm_ops / _seconds(layer, repeats), attention_ops / _seconds(attention, repeats))


def _seconds(call: Callable[[], None], repeats: int) -> float:
    """Median over `repeats` of the mean of ten calls."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(10):
            call()
        times.append((time.perf_counter() - started) / 10)
    return statistics.median(times)
