"""Every policy on every job, simulated; figures go to a file as they come, so that a stopped run goes on.

python -m benchmarks.policy_table --results policies.jsonl            # all pairs, all jobs
python -m benchmarks.policy_table --results sweep.jsonl --sweep       # sharing degree x prefix length
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS, Job, shared_prefixes
from benchmarks.simulate import (
    MAX_BATCH_TOKENS,
    MAX_SAMPLED,
    ORDERING,
    SHARING,
    UTILIZATION,
    bounds,
    cost_model,
    figures,
    run_policy,
)

RIVAL_RUNS = ("lru", "lru-1024", "lru-sorted", "lru-1024-sorted", "lpm", "lpm-sorted")
PAIRS = tuple(f"{sharing}/{order}" for sharing in SHARING for order in ORDERING)
DEGREES = (2, 4, 8, 16, 32, 64)
PREFIXES = (256, 1024, 4000, 16000)
SWEEP_POLICIES = ("lru-1024", "lru-1024-sorted", "batchllm")
SWEEP_SCALE = 0.25  # of the paper's 6,400 requests and of the device's KV memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--hardware", default="a100")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--workloads", nargs="+", choices=sorted(JOBS), default=list(JOBS))
    parser.add_argument("--policies", nargs="+", default=[*RIVAL_RUNS, *PAIRS])
    parser.add_argument("--scale", type=float, default=1.0, help="share of each job's requests")
    parser.add_argument("--kv-scale", type=float, default=1.0, help="share of the device's KV memory")
    args = parser.parse_args()
    if args.sweep:
        for degree in DEGREES:
            for prefix in PREFIXES:
                name = f"{prefix} x {degree}"
                job = shared_prefixes(name, 6400, prefix, 200, 100, degree, seed=0, scale=SWEEP_SCALE)
                _run(job, SWEEP_POLICIES, args, kv_scale=SWEEP_SCALE)
    else:
        for workload in args.workloads:
            _run(JOBS[workload](seed=0, scale=args.scale), args.policies, args, args.kv_scale)
    print(table(_read(args.results)))


def _run(job: Job, policies: Sequence[str], args: argparse.Namespace, kv_scale: float) -> None:
    done = {(row["workload"], row["policy"]) for row in _read(args.results)}
    missing = [policy for policy in policies if (job.name, policy) not in done]
    if not missing:
        return
    cost = cost_model(args.hardware, args.model)
    job_bounds = bounds(job, cost)
    memory = None
    if kv_scale != 1:
        left = cost.kv_memory_bytes(
            max_batch_tokens=MAX_BATCH_TOKENS, max_sampled=MAX_SAMPLED, utilization=UTILIZATION
        )
        memory = int(left * kv_scale)
    for policy in missing:
        row = {"workload": job.name, "policy": policy, "requests": len(job.prompts)}
        row |= figures(run_policy(job, policy, cost, kv_memory_bytes=memory), cost, job_bounds)
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a policy and job."""
    head = (
        "| job | policy | saving | of bound | s | of optimum | KV peak GiB | shared KV GiB-steps | valley |"
    )
    lines = [head, "|---" * 9 + "|"]
    for row in rows:
        of_bound = "-" if row["saving_of_bound"] is None else f"{row['saving_of_bound']:.3f}"
        lines.append(
            f"| {row['workload']} | {row['policy']} | {row['token_saving']:.4f} | {of_bound} "
            f"| {row['seconds']:.1f} | {row['share_of_optimum']:.3f} | {row['peak_kv_bytes'] / 2**30:.1f} "
            f"| {row['shared_kv_byte_steps'] / 2**30:.0f} | {row['valley_share']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
