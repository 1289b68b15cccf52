"""A job's attention on this CPU, both backends in turn, against its floor at the measured SDPA rate.

    python -m benchmarks.bench_cpu_attention A B --threads 2

The job's steps come from the real planner and scheduler; random queries, keys and values stand for the model,
in the shapes of SmolLM2-135M. Seconds: all layers, planning included, medians of `--repeats` passes over
the job. "best" is what the engine uses here. Wants a quiet machine; the last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.floor import measure_rates
from benchmarks.workloads import make
from engine.attention.backend import AttentionBackend
from engine.attention.cpu import cpu_backend
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.torch_backend import TorchBackend
from engine.cost_model import ModelShape
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.request import Request, SamplingParams
from engine.scheduling.scheduler import Scheduler

SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied_embeddings=True)
NUM_LAYERS = 4  # really held: their keys and values exceed a processor's cache, as those of all 30 do
PAGE_SIZE, MAX_BATCH_TOKENS = 16, 1024
KV_TOKENS = {"A": 46_000, "B": 6_400}

Factory = Callable[[KVPool], AttentionBackend]
BACKENDS: dict[str, Factory] = {
    "torch": lambda pool: TorchBackend(pool, PAGE_SIZE, [None] * NUM_LAYERS),
    "best": lambda pool: cpu_backend(pool, PAGE_SIZE, [None] * NUM_LAYERS, [SMOLLM2.num_heads] * NUM_LAYERS),
}


def attention_seconds(name: str, make_backend: Factory) -> tuple[float, int]:
    """Of one pass over the job, all layers; and the (query, key) pairs of one layer."""
    requests = [
        Request(
            index,
            np.array(line["body"]["prompt"], np.int32),
            SamplingParams(max_tokens=line["body"]["max_tokens"], temperature=0, ignore_eos=True),
        )
        for index, line in enumerate(make(name, seed=0, model="none"))
    ]
    pages = PagePool(KV_TOKENS[name] // PAGE_SIZE, PAGE_SIZE)
    scheduler = Scheduler(
        pages, max_batch_tokens=MAX_BATCH_TOKENS, eos_token_ids=frozenset(), lengths=LengthEstimator()
    )
    scheduler.add(make_plan(requests, page_size=PAGE_SIZE, num_pages=pages.num_pages))
    shapes = [KVShape(SMOLLM2.num_kv_heads, SMOLLM2.head_dim, SMOLLM2.head_dim)] * NUM_LAYERS
    backend = make_backend(KVPool(shapes, pages.num_pages * PAGE_SIZE, torch.float32, torch.device("cpu")))
    seconds, pairs = 0.0, 0
    while scheduler.has_work:
        batch = scheduler.next_batch()
        query = torch.randn(batch.num_tokens, SMOLLM2.num_heads, SMOLLM2.head_dim)
        key, value = torch.randn(2, batch.num_tokens, SMOLLM2.num_kv_heads, SMOLLM2.head_dim)
        started = time.perf_counter()
        step = backend.plan(batch)
        planned = time.perf_counter()
        for layer in range(NUM_LAYERS):
            step.attend(layer, query, key, value, SMOLLM2.head_dim**-0.5)
        layers = time.perf_counter() - planned
        seconds += planned - started + layers * SMOLLM2.num_layers / NUM_LAYERS
        pairs += int(batch.positions.sum()) + batch.num_tokens
        scheduler.commit(batch, np.ones(len(batch.sample_rows), np.int32), [])
    return seconds, pairs


def bench(name: str, repeats: int) -> dict[str, float | str]:
    seconds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    rates, pairs = [], 0
    for _ in range(repeats):
        rates.append(measure_rates(SMOLLM2).attention)
        for backend, make_backend in BACKENDS.items():
            passed, pairs = attention_seconds(name, make_backend)
            seconds[backend].append(passed)
    floor = pairs * 4 * SMOLLM2.num_heads * SMOLLM2.head_dim * SMOLLM2.num_layers / statistics.median(rates)
    figures = {backend: statistics.median(values) for backend, values in seconds.items()}
    return {
        "workload": name,
        "sdpa_gflops": round(statistics.median(rates) / 1e9, 1),
        "floor_seconds": round(floor, 2),
        **{f"{backend}_seconds": round(value, 2) for backend, value in figures.items()},
        **{f"{backend}_of_floor": round(floor / value, 3) for backend, value in figures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention of a whole job on this CPU.")
    parser.add_argument("workloads", nargs="+", choices=sorted(KV_TOKENS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        print(json.dumps([bench(name, args.repeats) for name in args.workloads]))


if __name__ == "__main__":
    main()
