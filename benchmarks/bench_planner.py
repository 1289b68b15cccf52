"""Seconds and memory to plan a synthetic job.

    python -m benchmarks.bench_planner --prompts 8000 --prompt-tokens 1600 --json
    python -m benchmarks.bench_planner --growth growth.png     # 1,000 to 64,000 prompts of 1,600 tokens

The last line is one JSON object. cpu_seconds is this process's own time, which neighbours disturb less.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine.planning.planner import make_plan
from engine.request import Request, SamplingParams

GROWTH = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)


def make_requests(
    num_prompts: int, prompt_tokens: int, own_tokens: int, degree: int, seed: int, system_tokens: int = 0
) -> list[Request]:
    """Shuffled prompts: a root of `system_tokens`, a prefix per `degree` prompts, and `own_tokens` each."""
    rng = np.random.default_rng(seed)
    root = rng.integers(0, 50_000, system_tokens, dtype=np.int32)
    prefix_tokens = prompt_tokens - own_tokens - system_tokens
    requests = []
    order = rng.permutation(num_prompts).tolist()
    for index in range(num_prompts):
        if index % degree == 0:
            prefix = rng.integers(0, 50_000, prefix_tokens, dtype=np.int32)
        own = rng.integers(0, 50_000, own_tokens, dtype=np.int32)
        prompt = np.concatenate((root, prefix, own))
        requests.append(Request(order[index], prompt, SamplingParams(max_tokens=100)))
    return sorted(requests, key=lambda request: request.request_id)


def measure(requests: list[Request], page_size: int, repeats: int) -> dict[str, Any]:
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        plan = make_plan(requests, page_size=page_size, num_pages=1 << 20)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "prompts": len(requests),
        "prompt_tokens": plan.num_prompt_tokens,
        "unique_tokens": plan.num_unique_tokens,
        "computed_tokens": plan.num_computed_tokens,
        "token_saving": round(plan.token_saving, 4),
        "segments": len(plan.segments),
        "seconds": round(min(seconds), 4),
        "cpu_seconds": round(min(cpu_seconds), 4),
        "all_seconds": [round(value, 4) for value in seconds],
        "peak_bytes_before": before_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def plot_growth(results: list[dict[str, Any]], path: Path) -> None:
    """Time over tokens on log axes, beside a straight line through the largest job."""
    from matplotlib.figure import Figure

    tokens = np.array([result["prompt_tokens"] for result in results])
    seconds = np.array([result["cpu_seconds"] for result in results])
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(tokens, seconds, marker="o", label="make_plan")
    axes.loglog(tokens, tokens * seconds[-1] / tokens[-1], linestyle=":", color="gray", label="linear")
    axes.set_xlabel("prompt tokens in the job")
    axes.set_ylabel("CPU seconds")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8000)
    parser.add_argument("--prompt-tokens", type=int, default=1600)
    parser.add_argument("--own-tokens", type=int, default=30)
    parser.add_argument("--system-tokens", type=int, default=0, help="tokens that all prompts share")
    parser.add_argument("--degree", type=int, default=3, help="prompts to a shared prefix")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=Path, help="PNG of the growth with the number of prompts")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line")
    args = parser.parse_args()
    results = []
    for num_prompts in GROWTH if args.growth else (args.prompts,):
        requests = make_requests(
            num_prompts, args.prompt_tokens, args.own_tokens, args.degree, args.seed, args.system_tokens
        )
        results.append(measure(requests, args.page_size, args.repeats))
        if not args.json:
            print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    if args.growth:
        plot_growth(results, args.growth)
    print(json.dumps(results if args.growth else results[0]))


if __name__ == "__main__":
    main()
