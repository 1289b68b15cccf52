"""`batchllm run` on a workload against the arithmetic floor of the same machine in the same minutes.

    python -m benchmarks.bench_run A B --threads 2 --repeats 3
    python -m benchmarks.bench_run A A-sorted

Workloads run in turn. Floor rates are measured before and after every run. The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.floor import Rates, floor_seconds, measure_rates
from benchmarks.workloads import NAMES, make, write
from engine.cost_model import JobWork, ModelShape
from engine.request import Request, SamplingParams
from engine.simulation import job_work

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SORTED = "-sorted"  # the same lines by prompt, instead of shuffled
# for 6,400 tokens in B (46,080 bytes a token in fp32); for everything in the others
SCARCE_KV = {"B": str(6400 * 46080)}
WORKLOADS = [name + order for name in NAMES for order in ("", SORTED)]


def prompts(lines: list[dict[str, Any]], model_dir: Path) -> list[list[int]]:
    """Token ids of each line's prompt, as the service sees them."""
    if all("prompt" in line["body"] for line in lines):
        return [line["body"]["prompt"] for line in lines]
    from engine.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(model_dir)
    return [tokenizer.render_chat(line["body"]["messages"]).tolist() for line in lines]


def least_work(lines: list[dict[str, Any]], model_dir: Path) -> JobWork:
    requests = [
        Request(index, np.array(ids, np.int32), SamplingParams(max_tokens=line["body"]["max_tokens"]))
        for index, (line, ids) in enumerate(zip(lines, prompts(lines, model_dir), strict=True))
    ]
    return job_work(requests, [request.sampling.max_tokens for request in requests])


def lines_of(name: str, seed: int, model: str) -> list[dict[str, Any]]:
    lines = make(name.removesuffix(SORTED), seed=seed, model=model)
    if name.endswith(SORTED):
        lines.sort(key=lambda line: json.dumps(line["body"]))
    return lines


def run_once(name: str, lines: list[dict[str, Any]], options: list[str]) -> dict[str, Any]:
    """What `run --json` says, and the answers' texts in the order of the lines."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write(lines, source)
        command = [sys.executable, "-m", "app.cli", "run", str(source), "-o", str(target), "--json"]
        command += [
            "--dtype",
            "float32",
            "--kv-memory",
            SCARCE_KV.get(name.removesuffix(SORTED), "4GiB"),
            *options,
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        answers = {answer["custom_id"]: answer for answer in map(json.loads, target.read_text().splitlines())}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    choices = [answers[line["custom_id"]]["response"]["body"]["choices"][0] for line in lines]
    texts = [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]
    return figures | {"texts": texts}


def bench(name: str, repeat: int, args: argparse.Namespace, model_dir: Path) -> dict[str, Any]:
    """One run, and the floor at the mean of the rates before and after it."""
    shape = ModelShape.from_config(json.loads((model_dir / "config.json").read_text()))
    lines = lines_of(name, args.seed + (repeat if args.reshuffle else 0), args.model)
    before = measure_rates(shape)
    figures = run_once(name, lines, ["--threads", str(args.threads), *args.options])
    del figures["texts"]
    after = measure_rates(shape)
    rates = Rates((before.gemm + after.gemm) / 2, (before.attention + after.attention) / 2)
    floor = floor_seconds(shape, least_work(lines, model_dir), rates)
    figures |= {
        "floor_seconds": round(floor, 2),
        "ratio": round(figures["seconds"] / floor, 3),
        "gemm_gflops": round(rates.gemm / 1e9, 1),
        "attention_gflops": round(rates.attention / 1e9, 1),
    }
    print(name, json.dumps(figures), flush=True)
    return figures


def summary(name: str, runs: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    figures = ("seconds", "floor_seconds", "ratio", "gemm_gflops", "attention_gflops")
    medians = {figure: statistics.median(run[figure] for run in runs) for figure in figures}
    return {"workload": name, "threads": threads, **medians, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description="batchllm run against the arithmetic floor.")
    parser.add_argument("workloads", nargs="+", choices=WORKLOADS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reshuffle", action="store_true", help="another seed for each repeat")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args, args.options = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    pull = [sys.executable, "-m", "app.cli", "pull", args.model]
    model_dir = Path(subprocess.run(pull, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.workloads}
    for repeat in range(args.repeats):  # in turn, so that a machine's moods meet all alike
        for name in args.workloads:
            runs[name].append(bench(name, repeat, args, model_dir))
    print(json.dumps([summary(name, of_name, args.threads) for name, of_name in runs.items()]))


if __name__ == "__main__":
    main()
