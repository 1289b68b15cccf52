"""One job under one policy on one device, simulated.

    python -m benchmarks.simulate --hardware a100 --model llama-3.1-8b --workload micro --policy lru --json
    python -m benchmarks.simulate --workload micro --policy lru batchllm --plot valleys.png

Policies: ours (batchllm), any pair of ours such as single-level/arrival, and the rivals lru (vLLM 0.6.4),
lru-1024 (vLLM v1) and lpm (SGLang 0.4.1); -sorted after a rival's name sorts its input. The last line is one
JSON object, or a list of them for several policies.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS, Job
from engine.cost_model import CostModel
from engine.hardware import HARDWARE, MODELS
from engine.planning.ordering import OrderingPolicy, arrival_order, decode_heavy_first
from engine.planning.planner import make_plan
from engine.planning.prefix_tree import build_prefix_tree
from engine.planning.sharing import SharingPolicy, share_nothing, share_optimally, share_single_level
from engine.rivals import RadixEngine, StreamingEngine
from engine.simulation import SimulatedRun, job_work, simulate

SHARING: dict[str, SharingPolicy] = {
    "none": share_nothing,
    "single-level": share_single_level,
    "optimal": share_optimally,
}
ORDERING: dict[str, OrderingPolicy] = {"arrival": arrival_order, "R-lengths": decode_heavy_first}
OURS = "optimal/R-lengths"
RIVALS = ("lru", "lru-1024", "lpm")
PAGE_SIZE = 16
# Of six sizes the best on `micro` (LOG.md).
MAX_BATCH_TOKENS = 4096
# As the engine sets memory aside for logits.
MAX_SAMPLED = 1024
UTILIZATION = 0.9


def run_policy(
    job: Job,
    policy: str,
    cost: CostModel,
    *,
    kv_memory_bytes: int | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> SimulatedRun:
    rival, is_sorted = policy.removesuffix("-sorted"), policy.endswith("-sorted")
    if rival in RIVALS:
        job = job.sorted() if is_sorted else job
        return _run_rival(rival, job, cost, kv_memory_bytes)
    sharing_name, order_name = (OURS if policy == "batchllm" else policy).split("/")
    memory = kv_memory_bytes or cost.kv_memory_bytes(
        max_batch_tokens=max_batch_tokens, max_sampled=MAX_SAMPLED, utilization=UTILIZATION
    )
    num_pages = memory // (PAGE_SIZE * cost.kv_bytes_per_token)
    requests = job.requests()
    plan = make_plan(
        requests,
        page_size=PAGE_SIZE,
        num_pages=num_pages,
        sharing=SHARING[sharing_name],
        ordering=ORDERING[order_name],
    )
    return simulate(
        requests,
        job.output_lengths.tolist(),
        cost,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        max_batch_tokens=max_batch_tokens,
        plan=plan,
        ordering=ORDERING[order_name],
    )


def _run_rival(rival: str, job: Job, cost: CostModel, kv_memory_bytes: int | None) -> SimulatedRun:
    requests, lengths = job.requests(), job.output_lengths.tolist()
    if rival == "lpm":
        return RadixEngine(requests, lengths, cost, kv_memory_bytes=kv_memory_bytes).run()
    is_v1 = rival == "lru-1024"
    max_seqs, max_batch_tokens = (1024, 8192) if is_v1 else (256, 2048)
    return StreamingEngine(
        requests,
        lengths,
        cost,
        max_seqs=max_seqs,
        max_batch_tokens=max_batch_tokens,
        is_v1=is_v1,
        kv_memory_bytes=kv_memory_bytes,
    ).run()


def bounds(job: Job, cost: CostModel) -> dict[str, float]:
    """What no policy can beat: the saving of the whole prefix tree, and the practical optimum."""
    tree = build_prefix_tree(job.prompts)
    work = job_work(job.requests(), job.output_lengths.tolist())
    return {
        "bound_saving": 1 - tree.num_unique_tokens / int(tree.length.sum()),
        "optimum_seconds": cost.optimum_seconds(work),
    }


def figures(run: SimulatedRun, cost: CostModel, job_bounds: dict[str, float]) -> dict[str, Any]:
    """The JSON object. A valley is a step with too few rows to use the arithmetic: fewer than rows at which
    the matrices' operations take as long as reading their weights."""
    hardware, trace = cost.hardware, run.trace
    ridge = max(hardware.gemm.ops_per_second) * hardware.dtype_bytes / (2 * hardware.memory_bandwidth)
    bound, optimum = job_bounds["bound_saving"], job_bounds["optimum_seconds"]
    return {
        "token_saving": round(run.token_saving, 4),
        "bound_saving": round(bound, 4),
        "saving_of_bound": round(run.token_saving / bound, 4) if bound > 0.01 else None,
        "seconds": round(run.seconds, 2),
        "optimum_seconds": round(optimum, 2),
        "share_of_optimum": round(optimum / run.seconds, 4),
        "steps": len(trace.seconds),
        "peak_kv_bytes": int(trace.kv_tokens.max(initial=0)) * cost.kv_bytes_per_token,
        "shared_kv_byte_steps": int(trace.shared_kv_tokens.sum()) * cost.kv_bytes_per_token,
        "valley_share": round(trace.valley_share(int(ridge)), 4),
        "preemptions": run.num_preemptions,
        "refused": run.num_refused,
    }


def cost_model(hardware: str, model: str) -> CostModel:
    return CostModel(MODELS[model], HARDWARE[hardware])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hardware", choices=sorted(HARDWARE), default="a100")
    parser.add_argument("--model", choices=sorted(MODELS), default="llama-3.1-8b")
    parser.add_argument("--workload", choices=sorted(JOBS), default="micro")
    parser.add_argument("--policy", nargs="+", default=["batchllm"])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the job's requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kv-memory", type=int, help="bytes; by default what the device leaves")
    parser.add_argument("--max-batch-tokens", type=int, default=MAX_BATCH_TOKENS, help="of our own steps")
    parser.add_argument("--plot", type=Path, help="PNG of tokens a step and of KV over time")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line")
    args = parser.parse_args()
    job = JOBS[args.workload](seed=args.seed, scale=args.scale)
    cost = cost_model(args.hardware, args.model)
    job_bounds = bounds(job, cost)
    results, runs = [], {}
    for policy in args.policy:
        runs[policy] = run_policy(
            job, policy, cost, kv_memory_bytes=args.kv_memory, max_batch_tokens=args.max_batch_tokens
        )
        head = {
            "hardware": args.hardware,
            "model": args.model,
            "workload": args.workload,
            "policy": policy,
            "requests": len(job.prompts),
        }
        results.append(head | figures(runs[policy], cost, job_bounds))
        if not args.json:
            print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    if args.plot:
        from benchmarks.plot_valleys import plot_valleys

        plot_valleys({policy: run.trace for policy, run in runs.items()}, cost, args.plot)
    print(json.dumps(results[0] if len(results) == 1 else results))


if __name__ == "__main__":
    main()
