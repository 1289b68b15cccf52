"""Each technique off in turn, on the real engine: seconds and saving of one job in little KV memory.

    python -m benchmarks.bench_ablation --threads 2
    python -m benchmarks.bench_ablation full "arrival order" --repeats 1

KV memory is a quarter of the job's unique prefix tokens. Output lengths spread and are not known beforehand.
The engine's own planner, scheduler, runner and attention run; only policies differ. Wants a quiet machine;
the last line is one JSON object.

    full              optimal sharing, R with estimated lengths, pages reserved by expected length
    no sharing        every prompt for itself
    single level      the paper's sharing
    no grouping       the job comes in 16 pieces, each planned by itself
    arrival order     groups in the order in which they arrive
    full reservation  pages reserved for max_tokens
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_run import DEFAULT_MODEL
from engine.attention.kv_pool import kv_bytes_per_token
from engine.build import cpu_attention, make_runner
from engine.engine import RunStep
from engine.execution.model import load_model
from engine.memory.pages import PagePool
from engine.planning.forest import Ints
from engine.planning.lengths import Floats, LengthEstimator
from engine.planning.optimal import Bools
from engine.planning.ordering import OrderingPolicy, arrival_order, decode_heavy_first
from engine.planning.planner import make_plan
from engine.planning.sharing import SharingPolicy, share_nothing, share_optimally, share_single_level
from engine.request import Request, SamplingParams
from engine.scheduling.scheduler import Scheduler

PAGE_SIZE, MAX_BATCH_TOKENS = 16, 1024
# Roots x documents x questions; tokens of each, and most output tokens
ROOTS, DOCUMENTS, QUESTIONS = 4, 3, 4
ROOT_TOKENS, DOCUMENT_TOKENS, QUESTION_TOKENS, MAX_OUTPUT = 384, 160, 24, 64
NUM_PAGES = (ROOTS * (ROOT_TOKENS + DOCUMENTS * DOCUMENT_TOKENS)) // 4 // PAGE_SIZE


class FullReservation(LengthEstimator):
    """Believes that every output takes all it may."""

    def expected(
        self, num_generated: int, max_tokens: int, ignore_eos: bool, tokens: float = 0.0, weight: float = 1.0
    ) -> int:
        return max_tokens

    def expected_of_many(
        self,
        num_generated: Ints,
        max_tokens: Ints,
        ignore_eos: Bools,
        tokens: Floats | float = 0.0,
        weight: Floats | float = 1.0,
    ) -> Ints:
        return np.asarray(max_tokens, dtype=np.int64)


# name: (sharing, ordering, estimator, pieces)
Variant = tuple[SharingPolicy, OrderingPolicy, type[LengthEstimator], int]
VARIANTS: dict[str, Variant] = {
    "full": (share_optimally, decode_heavy_first, LengthEstimator, 1),
    "no sharing": (share_nothing, decode_heavy_first, LengthEstimator, 1),
    "single level": (share_single_level, decode_heavy_first, LengthEstimator, 1),
    "no grouping": (share_optimally, decode_heavy_first, LengthEstimator, 16),
    "arrival order": (share_optimally, arrival_order, LengthEstimator, 1),
    "full reservation": (share_optimally, decode_heavy_first, FullReservation, 1),
}


def make_job(seed: int) -> tuple[list[Request], dict[int, int]]:
    """Shuffled requests and the length at which each stops; questions on one document answer alike."""
    rng = np.random.default_rng(seed)
    prompts, lengths = [], []
    for _ in range(ROOTS):
        root = rng.integers(1_000, 30_000, ROOT_TOKENS, dtype=np.int32)
        for _ in range(DOCUMENTS):
            document = rng.integers(1_000, 30_000, DOCUMENT_TOKENS, dtype=np.int32)
            typical = rng.integers(4, MAX_OUTPUT)
            for _ in range(QUESTIONS):
                question = rng.integers(1_000, 30_000, QUESTION_TOKENS, dtype=np.int32)
                prompts.append(np.concatenate((root, document, question)))
                lengths.append(int(np.clip(typical * rng.uniform(0.7, 1.4), 1, MAX_OUTPUT)))
    sampling = SamplingParams(max_tokens=MAX_OUTPUT, temperature=0.0)
    order = rng.permutation(len(prompts)).tolist()
    requests = [Request(place, prompts[index], sampling) for place, index in enumerate(order)]
    return requests, {place: lengths[index] for place, index in enumerate(order)}


def run(
    requests: Sequence[Request], lengths: dict[int, int], run_step: RunStep, variant: Variant
) -> dict[str, Any]:
    sharing, ordering, estimator, num_pieces = variant
    scheduler = Scheduler(
        PagePool(NUM_PAGES, PAGE_SIZE),
        max_batch_tokens=MAX_BATCH_TOKENS,
        eos_token_ids=frozenset(),
        lengths=estimator(),
        ordering=ordering,
    )
    started = time.perf_counter()
    for piece in np.array_split(np.arange(len(requests)), num_pieces):
        part = [requests[index] for index in piece.tolist()]
        plan = make_plan(part, page_size=PAGE_SIZE, num_pages=NUM_PAGES, sharing=sharing, ordering=ordering)
        assert not plan.refused, plan.refused
        scheduler.add(plan)
    while scheduler.has_work:
        batch = scheduler.next_batch()
        token_ids = run_step(batch).token_ids
        generated = zip(batch.request_ids.tolist(), batch.num_generated.tolist(), strict=True)
        stopped = [id_ for id_, num_generated in generated if num_generated + 1 >= lengths[id_]]
        scheduler.commit(batch, token_ids, stopped)
    seconds = time.perf_counter() - started
    computed = scheduler.num_computed_prompt_tokens + scheduler.num_recomputed_tokens
    prompt_tokens = sum(len(request.prompt_ids) for request in requests)
    return {
        "seconds": round(seconds, 2),
        "token_saving": round(1 - computed / prompt_tokens, 4),
        "steps": scheduler.num_steps,
        "preemptions": scheduler.num_preemptions,
        "recomputed_tokens": scheduler.num_recomputed_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", default=[*VARIANTS], metavar="variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pull = [sys.executable, "-m", "app.cli", "pull", args.model]
    model_dir = Path(subprocess.run(pull, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    loaded = load_model(model_dir, torch.device("cpu"), torch.float32)
    runner = make_runner(loaded, cpu_attention, NUM_PAGES, PAGE_SIZE)
    requests, lengths = make_job(seed=0)
    results: dict[str, Any] = {}
    run(requests[:4], lengths, runner.run, VARIANTS["full"])  # warms up
    for _ in range(args.repeats):
        for name in args.variants:
            figures = run(requests, lengths, runner.run, VARIANTS[name])
            best = results.setdefault(name, figures)
            best["seconds"] = min(best["seconds"], figures["seconds"])
    for name, figures in results.items():
        print(name, json.dumps(figures))
    kv_bytes = NUM_PAGES * PAGE_SIZE * kv_bytes_per_token(loaded.kv_shapes, loaded.dtype)
    print(json.dumps({"threads": args.threads, "kv_bytes": kv_bytes, "variants": results}))


if __name__ == "__main__":
    main()
