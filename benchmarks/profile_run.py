"""Where a job's seconds go on this CPU, by part and kind of step.

    python -m benchmarks.profile_run A --threads 2
    python -m benchmarks.profile_run A --quantize int8 --plain

The engine runs the job in this process, with a stopwatch around each part. `--plain` leaves norms, gates and
rotations to torch's operators, as before they had kernels of their own. Attention includes writing keys and
values, which the same call does. Layers' rest is norms, rotation, residuals, the gate's activation and
transformers' Python.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

import engine.execution.cpu_layers
from benchmarks.workloads import make
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution.packed_linear import PackedLinear
from engine.execution.quantized_linear import QuantizedLinear
from engine.execution.resolve import resolve_model
from engine.request import Request, SamplingParams

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARTS = (
    "linear layers",
    "attention",
    "layers' rest",
    "LM head",
    "sampling",
    "work list",
    "scheduling",
    "rest",
)


class Stopwatch:
    """Seconds of the present step, by part; a part within another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[tuple[str, float]] = []

    def start(self, part: str) -> None:
        self._open.append((part, time.perf_counter()))

    def stop(self) -> None:
        part, started = self._open.pop()
        took = time.perf_counter() - started
        self.seconds[part] += took
        if self._open:
            self.seconds[self._open[-1][0]] -= took

    def around(self, owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self.stop()

        setattr(owner, name, timed)


def watch(engine: Engine) -> Stopwatch:
    """Wraps the engine's parts; how they are found is this file's business, not the engine's."""
    stopwatch = Stopwatch()
    runner = engine._run_step.__self__  # type: ignore[attr-defined]
    model, scheduler = runner._model, engine._scheduler
    for module in model.modules():
        if isinstance(module, PackedLinear | QuantizedLinear):
            stopwatch.around(module, "forward", "LM head" if module is model.lm_head else "linear layers")
    for layer in model.model.layers:
        stopwatch.around(layer, "forward", "layers' rest")
    attention = runner._attention
    stopwatch.around(attention, "plan", "work list")
    planned = attention.plan

    def plan(batch: Any) -> Any:
        step = planned(batch)
        stopwatch.around(step, "attend", "attention")
        return step

    attention.plan = plan
    import engine.execution.runner as runner_module

    stopwatch.around(runner_module, "sample", "sampling")
    stopwatch.around(scheduler, "next_batch", "scheduling")
    stopwatch.around(scheduler, "commit", "scheduling")
    return stopwatch


def profile(engine: Engine, requests: list[Request]) -> dict[str, dict[str, float]]:
    """Seconds by part, for steps of more than 256 rows and for smaller ones, with their numbers."""
    stopwatch = watch(engine)
    tables: dict[str, defaultdict[str, float]] = {
        "large steps": defaultdict(float),
        "small steps": defaultdict(float),
    }
    engine.add(requests)
    while engine.has_work:
        before = engine.stats.computed_tokens
        stopwatch.seconds.clear()
        stopwatch.start("rest")
        engine.step()
        stopwatch.stop()
        table = tables["large steps" if engine.stats.computed_tokens - before > 256 else "small steps"]
        table["steps"] += 1
        for part, seconds in stopwatch.seconds.items():
            table[part] += seconds
    return {name: dict(table) for name, table in tables.items()}


def requests_of(name: str, seed: int) -> list[Request]:
    bodies = [line["body"] for line in make(name, seed=seed, model="any")]
    return [
        Request(
            i,
            np.array(body["prompt"], np.int32),
            SamplingParams(max_tokens=body["max_tokens"], temperature=0.0, ignore_eos=True),
        )
        for i, body in enumerate(bodies)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=["A", "B"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--plain", action="store_true", help="layers as transformers has them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args()
    if args.plain:
        engine.execution.cpu_layers.fuse_layers = lambda model, kernels: None  # type: ignore[assignment]
    kv_memory = {"A": 2 << 30, "B": 6_400 * 46_080}[args.workload]
    built = build_engine(
        EngineConfig(
            str(resolve_model(args.model)),
            kv_memory_bytes=kv_memory,
            num_threads=args.threads,
            quantize=args.quantize,
        )
    )
    assert isinstance(built, Engine)
    tables = profile(built, requests_of(args.workload, args.seed))
    for name, table in tables.items():
        total = sum(seconds for part, seconds in table.items() if part != "steps")
        print(f"| {name} ({table.get('steps', 0):.0f}) | s | share |\n|---|---|---|")
        for part in PARTS:
            print(f"| {part} | {table.get(part, 0.0):.2f} | {table.get(part, 0.0) / max(total, 1e-9):.1%} |")
    print(json.dumps({"workload": args.workload, "quantize": args.quantize, "plain": args.plain, **tables}))


if __name__ == "__main__":
    main()
