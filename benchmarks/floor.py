"""The arithmetic floor of a job on this CPU: its operations over the rates measured here and now.

    floor = linear operations / GEMM rate + attention operations / SDPA rate

Linear operations count every row that perfect token-level sharing still computes; the LM head counts
sampled rows only. Attention operations count each computed row against the keys it can see. Rates are
medians over the model's own shapes with many rows, the best case for both.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.planning.planner import make_plan
from engine.request import Request


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-like decoder."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> list[tuple[int, int]]:
        """(out, in) of each matrix of a layer."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return [
            (heads + 2 * kv_heads, self.hidden),
            (self.hidden, heads),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]


@dataclass(frozen=True, slots=True)
class Work:
    """What a job needs at best sharing: rows through the layers, rows through the LM head, and
    (query, key) pairs of attention."""

    rows: int
    sampled_rows: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations per second, all threads together."""

    gemm: float
    attention: float


def job_work(requests: Sequence[Request], output_lengths: Sequence[int]) -> Work:
    """The least work of greedy generation: unique prompt tokens once, every output token but the last."""
    plan = make_plan(requests, page_size=1, num_pages=1 << 40, overhead_tokens=0)
    ends: list[int] = []
    rows = pairs = 0
    for segment in plan.segments:
        start = 0 if segment.parent is None else ends[segment.parent]
        ends.append(start + len(segment.token_ids))
        rows += len(segment.token_ids)
        pairs += int(np.arange(start + 1, ends[-1] + 1).sum())
    for request, length in zip(requests, output_lengths, strict=True):
        prompt = len(request.prompt_ids)
        rows += length - 1
        pairs += int(np.arange(prompt + 1, prompt + length).sum())
    return Work(rows=rows, sampled_rows=sum(output_lengths), pairs=pairs)


def floor_seconds(shape: ModelShape, work: Work, rates: Rates) -> float:
    per_row = 2 * shape.num_layers * sum(out * into for out, into in shape.layer_weights)
    linear = work.rows * per_row + work.sampled_rows * 2 * shape.hidden * shape.vocab
    attention = work.pairs * 4 * shape.num_heads * shape.head_dim * shape.num_layers
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
