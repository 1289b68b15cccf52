"""Seconds to plan a synthetic job: python -m benchmarks.bench_planner --prompts 8000 --prompt-tokens 1600."""

import argparse
import json
import resource
import time

import numpy as np

from engine.planning.planner import make_plan
from engine.request import Request, SamplingParams


def make_requests(
    num_prompts: int, prompt_tokens: int, own_tokens: int, degree: int, seed: int, system_tokens: int = 0
) -> list[Request]:
    """Shuffled prompts: a common root, a prefix for each `degree` prompts, and own tokens."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8000)
    parser.add_argument("--prompt-tokens", type=int, default=1600)
    parser.add_argument("--own-tokens", type=int, default=30)
    parser.add_argument("--system-tokens", type=int, default=0, help="tokens that all prompts share")
    parser.add_argument("--degree", type=int, default=3, help="prompts to a shared prefix")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    requests = make_requests(
        args.prompts, args.prompt_tokens, args.own_tokens, args.degree, args.seed, args.system_tokens
    )
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        plan = make_plan(requests, page_size=args.page_size, num_pages=1 << 20)
        seconds.append(time.perf_counter() - start)
    result = {
        "prompts": args.prompts,
        "prompt_tokens": plan.num_prompt_tokens,
        "unique_tokens": plan.num_unique_tokens,
        "computed_tokens": plan.num_computed_tokens,
        "token_saving": round(plan.token_saving, 4),
        "segments": len(plan.segments),
        "seconds": round(min(seconds), 4),
        "all_seconds": [round(value, 4) for value in seconds],
        "peak_bytes_before": before_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
