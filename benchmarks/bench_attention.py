"""The work list of a decoding step: time to plan it, and the memory it moves against the least possible.

    python -m benchmarks.bench_attention

Llama-3.1-8B's shapes (32 query and 8 KV heads of 128, bf16), per layer and step. No GPU is asked; the last
line is one JSON object.
"""

import argparse
import json
import random
import statistics
import time

import torch

from benchmarks.steps import Step, decode_segments, forest, lay_out
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.tiles import TileLimits, plan_tiles
from engine.attention.triton_backend import TritonBackend
from engine.attention.work_list import build_work_list
from kernels.prefix_attention import tile_shape

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ITEMSIZE = 32, 8, 128, 2
PAGE_SIZE = 16
H100_MULTIPROCESSORS = 132
KV_BYTES_PER_TOKEN = 2 * NUM_KV_HEADS * HEAD_DIM * ITEMSIZE


def traffic(step: Step) -> dict[str, float]:
    """Bytes of one layer in one step: KV that the tiles read, what attention that knows no sharing would
    read, and what cannot be avoided (each token's KV once); partial states written and read again."""
    wide, block_kv = tile_shape(HEAD_DIM, ITEMSIZE)
    limits = TileLimits(NUM_HEADS // NUM_KV_HEADS, NUM_KV_HEADS, wide, block_kv, H100_MULTIPROCESSORS)
    plan = plan_tiles(step.batch, build_work_list(step.batch), limits)
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
        "launches": 2 + (len(plan.merge_rows) > 0),
    }


def planning_seconds(step: Step, repeats: int) -> float:
    """Median of `TritonBackend.plan`, the copy to the device included."""
    pool = KVPool([KVShape(NUM_KV_HEADS, HEAD_DIM, HEAD_DIM)], 0, torch.bfloat16, torch.device("cpu"))
    backend = TritonBackend(pool, PAGE_SIZE, [None], [NUM_HEADS], H100_MULTIPROCESSORS)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        backend.plan(step.batch)
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
        "plan_ms": 1000 * planning_seconds(step, arguments.repeats),
    }
    for name, value in result.items():
        print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value:,}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
