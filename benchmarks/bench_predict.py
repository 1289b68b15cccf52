"""Real runs on this CPU against the simulator's prediction of them.

    python -m benchmarks.bench_predict --threads 2

The machine is calibrated once at the start; then each workload is run by `batchllm run` and simulated with
the same requests, KV memory and step size. Wants a quiet machine. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_run import DEFAULT_MODEL, prompts
from benchmarks.workloads import Line, micro, spider_sql, write
from engine.cost_model import CostModel, ModelShape
from engine.execution.calibrate import calibrate_cpu
from engine.request import Request, SamplingParams
from engine.simulation import simulate

PAGE_SIZE, MAX_BATCH_TOKENS = 16, 1024
# name: (prefixes, degree, prefix, own, output) and KV tokens; shapes that load different operators
SHAPES = {
    "A": ((8, 8, 1024, 64, 32), 50_000),
    "B": ((32, 4, 512, 32, 16), 6_400),
    "decode": ((1, 64, 64, 16, 160), 50_000),
    "prefill": ((48, 1, 16, 700, 2), 50_000),
    "small-groups": ((64, 3, 128, 24, 12), 50_000),
    "long-prefix": ((1, 48, 3000, 32, 48), 50_000),
}


def lines_of(name: str, model: str) -> tuple[list[Line], int]:
    if name == "spider_sql":
        return spider_sql(seed=0, model=model), 50_000
    shape, kv_tokens = SHAPES[name]
    return micro(*shape, seed=0, model=model), kv_tokens


def measure(lines: list[Line], kv_bytes: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write(lines, source)
        command = [sys.executable, "-m", "app.cli", "run", str(source), "-o", str(target), "--json"]
        command += ["--dtype", "float32", "--kv-memory", str(kv_bytes), "--threads", str(threads)]
        command += ["--max-batch-tokens", str(MAX_BATCH_TOKENS)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def predict(lines: list[Line], cost: CostModel, kv_bytes: int, model_dir: Path) -> float:
    outputs = [line["body"]["max_tokens"] for line in lines]
    requests = [
        Request(index, np.array(ids, np.int32), SamplingParams(max_tokens=output, ignore_eos=True))
        for index, (ids, output) in enumerate(zip(prompts(lines, model_dir), outputs, strict=True))
    ]
    run = simulate(
        requests,
        outputs,
        cost,
        num_pages=kv_bytes // (PAGE_SIZE * cost.kv_bytes_per_token),
        page_size=PAGE_SIZE,
        max_batch_tokens=MAX_BATCH_TOKENS,
    )
    return run.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=[*SHAPES, "spider_sql"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pull = [sys.executable, "-m", "app.cli", "pull", args.model]
    model_dir = Path(subprocess.run(pull, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    shape = ModelShape.from_config(json.loads((model_dir / "config.json").read_text()))
    cost = CostModel(shape, calibrate_cpu(shape))
    results = []
    for name in args.workloads:
        lines, kv_tokens = lines_of(name, args.model)
        kv_bytes = kv_tokens * cost.kv_bytes_per_token
        predicted = predict(lines, cost, kv_bytes, model_dir)
        measured = measure(lines, kv_bytes, args.threads)["seconds"]
        results.append(
            {
                "workload": name,
                "predicted_seconds": round(predicted, 2),
                "measured_seconds": round(measured, 2),
                "error": round(predicted / measured - 1, 3),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    worst = max(abs(result["error"]) for result in results)
    print(json.dumps({"threads": args.threads, "worst_error": worst, "workloads": results}))


if __name__ == "__main__":
    main()
