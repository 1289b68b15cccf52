"""The work list of a decoding step: time to plan it, and the memory it moves against the least possible.

    python -m benchmarks.bench_attention

Llama-3.1-8B's shapes (32 query and 8 KV heads of 128, bf16), per layer and step. No GPU is asked: launches
are counted where Triton would start them, and planning ends with all columns in one buffer, which on a GPU
one copy then sends. The last line is one JSON object.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.steps import Step, decode_segments, forest, lay_out
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.tiles import StepTiles, TileLimits
from engine.attention.triton_backend import TritonBackend
from kernels.prefix_attention import prefix_attention_kernel, tile_shape

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ITEMSIZE = 32, 8, 128, 2
PAGE_SIZE = 16
H100_MULTIPROCESSORS = 132
WINDOW = 1024  # of a sliding layer, as in Gemma 3
KV_BYTES_PER_TOKEN = 2 * NUM_KV_HEADS * HEAD_DIM * ITEMSIZE


def traffic(step: Step) -> dict[str, float]:
    """Bytes of one layer in one step: KV that the tiles read, what attention that knows no sharing would
    read, and what cannot be avoided (each token's KV once); partial states written and read again."""
    wide, block_kv = tile_shape(HEAD_DIM, ITEMSIZE)
    limits = TileLimits(NUM_HEADS // NUM_KV_HEADS, NUM_KV_HEADS, wide, block_kv, H100_MULTIPROCESSORS)
    plan = StepTiles(step.batch).plan(limits)
    tokens_read = int((plan.items[:, 4] - plan.items[:, 3]).sum())
    per_sequence = sum(int(position) + 1 for position in step.batch.positions)
    least = int(step.batch.kv_len.sum())
    return {
        "kv_bytes": tokens_read * KV_BYTES_PER_TOKEN,
        "kv_bytes_per_sequence_attention": per_sequence * KV_BYTES_PER_TOKEN,
        "least_kv_bytes": least * KV_BYTES_PER_TOKEN,
        "kv_over_least": tokens_read / least,
        "per_sequence_over_least": per_sequence / least,
        "state_bytes": 2 * plan.num_partial_rows * NUM_HEADS * (HEAD_DIM + 1) * 4,
        "tiles": len(plan.items),
    }


def backend(windows: Sequence[int | None]) -> TritonBackend:
    """For a layer per window, with no room for keys and values."""
    shapes = [KVShape(NUM_KV_HEADS, HEAD_DIM, HEAD_DIM)] * len(windows)
    pool = KVPool(shapes, 0, torch.bfloat16, torch.device("cpu"))
    return TritonBackend(pool, PAGE_SIZE, windows, [NUM_HEADS] * len(windows), H100_MULTIPROCESSORS)


def launches(step: Step) -> list[str]:
    """The kernels that a layer's `attend` launches, noted in place of running them."""
    planned = backend([None]).plan(step.batch)
    rows = step.batch.num_tokens
    query = torch.zeros(rows, NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    key, value = torch.zeros(2, rows, NUM_KV_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    made: list[str] = []

    def note(kernel: Any, *_: object, **__: object) -> None:
        made.append(kernel.__name__)

    with patch.object(type(prefix_attention_kernel), "run", note):
        planned.attend(0, query, key, value, HEAD_DIM**-0.5)
    return made


def planning_seconds(step: Step, windows: Sequence[int | None], repeats: int) -> float:
    """Median of `TritonBackend.plan` for layers with these windows."""
    planner = backend(windows)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        planner.plan(step.batch)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def decode_step(groups: int, degree: int, prefix: int, own: int) -> Step:
    nodes = forest(decode_segments(groups, degree, prefix, own))
    return lay_out(nodes, PAGE_SIZE, random.Random(0), scattered=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--degree", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--own", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    step = decode_step(arguments.groups, arguments.degree, arguments.prefix, arguments.own)
    result = traffic(step) | {
        "sequences": step.batch.num_tokens,
        "segments": len(step.nodes),
        "launches": len(launches(step)),
        "plan_ms": 1000 * planning_seconds(step, [None], arguments.repeats),
        "plan_full_and_sliding_ms": 1000 * planning_seconds(step, [None, WINDOW], arguments.repeats),
    }
    for name, value in result.items():
        print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value:,}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
