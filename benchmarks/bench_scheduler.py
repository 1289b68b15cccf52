"""Milliseconds the scheduler takes a step: python -m benchmarks.bench_scheduler --running 1024.

A fake model answers at once. Steps are reported where at least `--running` sequences decode: all of them, and
those of them that also finish or admit sequences. CPU time of this thread, so that neighbours do not count.
"""

import argparse
import json
import time

import numpy as np

from benchmarks.bench_planner import make_requests
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.request import Request, SamplingParams
from engine.scheduling.scheduler import Scheduler


def spread_outputs(requests: list[Request], output_tokens: int, seed: int) -> list[Request]:
    """Outputs of half to one and a half times `output_tokens`, so that some sequences end in every step."""
    lengths = np.random.default_rng(seed).integers(output_tokens // 2, output_tokens * 3 // 2, len(requests))
    return [
        Request(
            request.request_id, request.prompt_ids, SamplingParams(max_tokens=int(length), ignore_eos=True)
        )
        for request, length in zip(requests, lengths, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="requests, as a multiple of --running")
    parser.add_argument("--prefix-tokens", type=int, default=500)
    parser.add_argument("--own-tokens", type=int, default=100)
    parser.add_argument("--output-tokens", type=int, default=200)
    parser.add_argument("--degree", type=int, default=16)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--num-pages", type=int, help="default: room for 1.2 times --running")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    per_sequence = args.own_tokens + args.prefix_tokens // args.degree + args.output_tokens
    num_pages = args.num_pages or int(1.2 * args.running * (per_sequence // args.page_size + 2))
    requests = make_requests(
        args.running * args.rounds,
        args.prefix_tokens + args.own_tokens,
        args.own_tokens,
        args.degree,
        args.seed,
    )
    requests = spread_outputs(requests, args.output_tokens, args.seed)
    scheduler = Scheduler(
        PagePool(num_pages, args.page_size),
        max_batch_tokens=2 * args.running,
        eos_token_ids=frozenset({2}),
        lengths=LengthEstimator(),
    )
    start = time.perf_counter()
    scheduler.add(make_plan(requests, page_size=args.page_size, num_pages=num_pages))
    add_seconds = time.perf_counter() - start
    full, eventful, num_finished = [], [], 0
    start_run = time.thread_time()
    while scheduler.has_work:
        start = time.thread_time()
        batch = scheduler.next_batch()
        token_ids = np.full(len(batch.sample_rows), 7, dtype=np.int32)
        finished = scheduler.commit(batch, token_ids)
        milliseconds = (time.thread_time() - start) * 1e3
        num_finished += len(finished)
        if len(batch.sample_rows) >= args.running:
            full.append(milliseconds)
            if finished or batch.num_tokens > len(batch.sample_rows):
                eventful.append(milliseconds)
    assert num_finished == len(requests)
    result = {
        "running": args.running,
        "steps": scheduler.num_steps,
        "full_steps": len(full),
        "median_ms": round(float(np.median(full)), 3) if full else None,
        "p99_ms": round(float(np.percentile(full, 99)), 3) if full else None,
        "eventful_median_ms": round(float(np.median(eventful)), 3) if eventful else None,
        "all_steps_mean_ms": round((time.thread_time() - start_run) / scheduler.num_steps * 1e3, 3),
        "plan_and_add_seconds": round(add_seconds, 3),
        "preemptions": scheduler.num_preemptions,
        "peak_pages": scheduler.peak_pages,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
