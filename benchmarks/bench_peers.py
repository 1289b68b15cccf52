"""Other engines and ours on the same prompts, model, precision and threads, in turn.

    python -m benchmarks.bench_peers A B --repeats 3                 # everything
    python -m benchmarks.bench_peers A --settings ours vllm-eager    # some of it
    python -m benchmarks.bench_peers --table                         # what was measured so far

Every run adds a line to build/peers/results.jsonl, so a bench may be cut and go on; the table is made of all
lines found there. Each peer gets an environment of its own under build/peers at its first run. Prompts are
token ids and every answer has the same length, so all do the same work. Clocks start when weights are loaded.
What the machine did beside a run is recorded as `others`, a share of its CPU time; a run with more than 3 %
is done again, twice at most.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer

from benchmarks.bench_run import DEFAULT_MODEL, SCARCE_KV, least_work, prompts, run_once
from benchmarks.floor import floor_seconds, measure_rates
from benchmarks.peers.environments import ENVIRONMENTS, HOME
from benchmarks.workloads import NAMES, make
from engine.cost_model import ModelShape

RESULTS = HOME / "results.jsonl"
KV_BYTES_A_TOKEN = 46_080  # of the default model in fp32
SCRIPTS = Path(__file__).parent / "peers"
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """peer: whose environment and script; None for ours. sorted: the caller sorts the prompts."""

    peer: str | None
    options: dict[str, Any] = field(default_factory=dict)
    sorted: bool = False


SETTINGS = {
    "ours": Setting(None),
    "vllm-default": Setting("vllm", {"eager": False, "block": 128}),
    "vllm-eager": Setting("vllm", {"eager": True}),
    "vllm-compiled": Setting("vllm", {"eager": False}),
    "vllm-eager-sorted": Setting("vllm", {"eager": True}, sorted=True),
    "vllm-compiled-sorted": Setting("vllm", {"eager": False}, sorted=True),
    "openvino-all": Setting("openvino", {"in_flight": None}),
    "openvino-8-sorted": Setting("openvino", {"in_flight": 8}, sorted=True),
    "llamacpp-sorted": Setting("llamacpp", {"slots": 16}, sorted=True),
    "ctranslate2-grouped": Setting("ctranslate2"),
    "transformers-sorted": Setting("transformers", sorted=True),
}


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    lines: list[dict[str, Any]]
    prompts: list[list[int]]
    max_tokens: int

    @classmethod
    def of(cls, name: str, model_dir: Path) -> "Job":
        lines = make(name, seed=0, model=DEFAULT_MODEL)
        return cls(name, lines, prompts(lines, model_dir), lines[0]["body"]["max_tokens"])

    @property
    def kv_tokens(self) -> int | None:
        return int(SCARCE_KV[self.name]) // KV_BYTES_A_TOKEN if self.name in SCARCE_KV else None


def run_peer(job: Job, setting: Setting, model_dir: Path, threads: int) -> Result:
    """seconds, load_seconds and the text of each answer, in the order of the job's lines."""
    assert setting.peer is not None
    environment = ENVIRONMENTS[setting.peer]
    python = environment.python(setting.peer)
    exported = {"exported": str(environment.export(model_dir))} if environment.export else {}
    order = (
        sorted(range(len(job.prompts)), key=job.prompts.__getitem__)
        if setting.sorted
        else range(len(job.prompts))
    )
    task = {
        "model_dir": str(model_dir),
        "prompts": [job.prompts[i] for i in order],
        "max_tokens": job.max_tokens,
        "longest": max(map(len, job.prompts)) + job.max_tokens,
        "kv_tokens": job.kv_tokens,
        "threads": threads,
        "options": setting.options | exported,
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "job.json"), Path(folder, "answer.json")
        source.write_text(json.dumps(task))
        command = [str(python), str(SCRIPTS / f"run_{setting.peer}.py"), str(source), str(target)]
        own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{setting.peer} failed:\n{done.stdout[-3000:]}")
        answer: Result = json.loads(target.read_text())
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    texts = [""] * len(job.prompts)
    for index, output in zip(order, answer.pop("answers"), strict=True):
        is_text = isinstance(output, str)
        texts[index] = output if is_text else tokenizer.decode(output, skip_special_tokens=True)
    return answer | {"texts": texts}


def measure(job: Job, name: str, model_dir: Path, threads: int) -> Result:
    """One run, with the floor at the rates just before it."""
    setting = SETTINGS[name]
    shape = ModelShape.from_config(json.loads((model_dir / "config.json").read_text()))
    floor = floor_seconds(shape, least_work(job.lines, model_dir), measure_rates(shape, repeats=2))
    busy, own, started = _busy(), _children(), time.time()
    if setting.peer is None:
        answer = run_once(job.name, job.lines, ["--threads", str(threads)])
    else:
        answer = run_peer(job, setting, model_dir, threads)
    others = max(_busy() - busy - (_children() - own), 0.0)
    return {
        "workload": job.name, "setting": name, "threads": threads, "when": int(started),
        "seconds": answer["seconds"], "load_seconds": answer["load_seconds"], "floor_seconds": floor,
        "others": others / ((time.time() - started) * psutil.cpu_count()), "texts": answer["texts"],
    }  # fmt: skip


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(results: list[Result]) -> str:
    """Markdown: medians of each setting, their ratio to ours, and how many texts equal ours."""
    lines = [
        "| workload | setting | runs | seconds | over the floor | over ours | same texts | others |",
        "|---" * 8 + "|",
    ]
    for workload in dict.fromkeys(result["workload"] for result in results):
        of_workload = [result for result in results if result["workload"] == workload]
        ours = [result for result in of_workload if result["setting"] == "ours"]
        for setting in (name for name in SETTINGS if any(r["setting"] == name for r in of_workload)):
            runs = [result for result in of_workload if result["setting"] == setting]
            seconds = statistics.median(run["seconds"] for run in runs)
            floor = statistics.median(run["seconds"] / run["floor_seconds"] for run in runs)
            over = f"{seconds / statistics.median(run['seconds'] for run in ours):.2f}" if ours else "-"
            same = f"{_same(runs[0]['texts'], ours[0]['texts'])}/{len(runs[0]['texts'])}" if ours else "-"
            others = max(run["others"] for run in runs)
            lines.append(
                f"| {workload} | {setting} | {len(runs)} | {seconds:.1f} | {floor:.2f} | {over} | {same} "
                f"| {others:.1%} |"
            )
    return "\n".join(lines)


def _same(left: list[str], right: list[str]) -> int:
    return sum(one == other for one, other in zip(left, right, strict=True))


def plot(results: list[Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    workloads = list(dict.fromkeys(result["workload"] for result in results))
    figure, axes = plt.subplots(
        1, len(workloads), figsize=(3.6 * len(workloads), 4), squeeze=False, layout="constrained"
    )
    for axis, workload in zip(axes[0], workloads, strict=True):
        of_workload = [result for result in results if result["workload"] == workload]
        names = [name for name in SETTINGS if any(r["setting"] == name for r in of_workload)]
        seconds = [
            statistics.median(r["seconds"] for r in of_workload if r["setting"] == name) for name in names
        ]
        colours = ["#1b6ca8" if name == "ours" else "#b8bfc6" for name in names]
        axis.barh(names[::-1], seconds[::-1], color=colours[::-1])
        axis.axvline(statistics.median(r["floor_seconds"] for r in of_workload), color="black", linestyle=":")
        axis.set_title(f"{workload}: seconds, dotted: floor")
        for place, value in enumerate(seconds[::-1]):
            axis.text(value, place, f" {value:.0f}", va="center")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def read_results() -> list[Result]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workloads", nargs="*", choices=NAMES, default=[])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="a PNG of the medians")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    HOME.mkdir(parents=True, exist_ok=True)
    if not args.table:
        pull = [sys.executable, "-m", "app.cli", "pull", DEFAULT_MODEL]
        model_dir = Path(subprocess.run(pull, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        for workload in args.workloads or NAMES:
            job = Job.of(workload, model_dir)
            for _ in range(args.repeats):
                for name in args.settings:
                    run_and_keep(job, name, model_dir, args.threads)
    results = read_results()
    print(table(results))
    if args.plot:
        plot(results, args.plot)


def run_and_keep(job: Job, name: str, model_dir: Path, threads: int) -> None:
    for _ in range(3):
        result = measure(job, name, model_dir, threads)
        print(
            job.name,
            name,
            f"{result['seconds']:.1f} s",
            f"others {result['others']:.1%}",
            file=sys.stderr,
            flush=True,
        )
        if result["others"] <= 0.03:
            break
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
