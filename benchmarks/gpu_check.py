"""Are the kernels right on this machine's GPU, and how fast.

    python -m benchmarks.gpu_check                               (make gpu-check)
    TRITON_INTERPRET=1 python -m benchmarks.gpu_check --small     the same steps without a GPU

1. every kernel over the odd shapes of benchmarks/kernel_cases.py, in fp32, fp16 and bf16
2. time, bandwidth and operations per second of a layer's attention, against torch's SDPA on the same
   work without sharing
3. the tokens of a whole run in fp32, against those of the engine on the CPU

The last line is one JSON object; the exit status is 1 where something is wrong.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernel_cases import CASES, GPU_CASES, check_case
from benchmarks.steps import Step, decode_segments, forest, lay_out
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.triton_backend import TritonBackend
from engine.attention.work_list import build_work_list
from engine.build import assemble_engine, build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution.model import LoadedModel, load_model
from engine.execution.resolve import resolve_model
from engine.request import Request, SamplingParams

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGE_SIZE = 16
HEAD_DIM = 128

Result = dict[str, Any]


def check_values(device: torch.device, small: bool) -> list[Result]:
    results = []
    for name, case in ({"tails": CASES["tails"]} if small else GPU_CASES).items():
        try:
            results.append({"case": name, "relative_rms": check_case(case, device)})
        except Exception as error:  # a kernel that does not build or start is a result too
            results.append({"case": name, "wrong": f"{type(error).__name__}: {error}"})
        print(results[-1], flush=True)
    return results


def speed_steps(small: bool) -> dict[str, Step]:
    """Steps by name: decoding in groups, decoding alone, a prefill chunk, and a mix."""
    groups, degree, prefix, own, chunk = (1, 2, 90, 9, 40) if small else (64, 16, 2000, 250, 8192)
    shared = decode_segments(groups, degree, prefix, own)
    segments = {
        "decode, prefixes shared": shared,
        "decode, nothing shared": [(0, prefix + own - 1, 1)] * (groups * min(degree, 4)),
        "prefill chunk": [(0, 0, chunk)],
        "mixed": [(0, 0, chunk // 2), *shared],
    }
    return {
        name: lay_out(forest(nodes), PAGE_SIZE, random.Random(0), scattered=False)
        for name, nodes in segments.items()
    }


def measure_speed(name: str, step: Step, device: torch.device, small: bool) -> Result:
    """One layer's attention with Llama-3.1-8B's heads in bf16; the interpreter gets bf16 wrong."""
    num_heads, num_kv_heads, repeats = (4, 1, 1) if small else (32, 8, 20)
    dtype = torch.float16 if INTERPRETED else torch.bfloat16
    pool = KVPool([KVShape(num_kv_heads, HEAD_DIM, HEAD_DIM)], step.num_slots, dtype, device)
    for tensor in (*pool.keys, *pool.values):
        tensor.normal_()
    num_rows = step.batch.num_tokens
    query = torch.randn(num_rows, num_heads, HEAD_DIM, dtype=dtype, device=device)
    key, value = torch.randn(2, num_rows, num_kv_heads, HEAD_DIM, dtype=dtype, device=device)
    backend = TritonBackend(pool, PAGE_SIZE, [None], [num_heads], num_programs(device))
    planned = backend.plan(step.batch)
    seconds = _seconds(lambda: planned.attend(0, query, key, value, HEAD_DIM**-0.5), device, repeats)
    sdpa_seconds = _seconds(_sdpa(step, query, num_kv_heads), device, repeats)
    work = build_work_list(step.batch)
    rows, kv_tokens = work.row_end - work.row_start, work.kv_end - work.kv_start
    # A causal item's rows see all but a triangle of its tokens.
    pairs = int((rows * kv_tokens - work.causal * rows * (rows - 1) // 2).sum())
    kv_bytes = int(kv_tokens.sum()) * 2 * num_kv_heads * HEAD_DIM * dtype.itemsize
    return {
        "step": name,
        "ms": 1e3 * seconds,
        "sdpa_ms": 1e3 * sdpa_seconds,
        "kv_gb_per_s": kv_bytes / seconds / 1e9,
        "tflop_per_s": pairs * 4 * num_heads * HEAD_DIM / seconds / 1e12,
        "plan_ms": 1e3 * _seconds(lambda: backend.plan(step.batch), device, repeats),
    }


def _sdpa(step: Step, query: torch.Tensor, num_kv_heads: int) -> Callable[[], None]:
    """The same rows by torch: each segment's rows over the whole of their own history, contiguous, those of
    one length in one call."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    row = 0
    for node in step.nodes:
        if node.num_rows:
            by_shape.setdefault((node.num_rows, node.position + node.kv_len), []).append(row)
        row += node.num_rows
    calls = []
    for (num_rows, kv_len), starts in by_shape.items():
        rows = (torch.tensor(starts)[:, None] + torch.arange(num_rows)).to(query.device)
        history = query.new_empty(2, len(starts), num_kv_heads, kv_len, HEAD_DIM).normal_()
        calls.append((query[rows].transpose(1, 2), *history, num_rows == kv_len))

    def run() -> None:
        for rows, keys, values, is_causal in calls:
            torch.nn.functional.scaled_dot_product_attention(
                rows, keys, values, is_causal=is_causal, enable_gqa=True
            )

    return run


def _seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median, the device's work included."""
    times = []
    for _ in range(repeats + 1):  # the first compiles
        _finish(device)
        started = time.perf_counter()
        call()
        _finish(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_programs(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 64


def check_tokens(model: str, device: torch.device, small: bool) -> Result:
    """A job with two levels of prefix on both engines; in fp32, so that only near-ties may differ."""
    path = str(resolve_model(model, None))
    config = EngineConfig(path, dtype="float32", max_batch_tokens=32 if small else 256)
    kv_memory_bytes = 1 << (20 if small else 29)
    expected = _run(build_engine(replace(config, kv_memory_bytes=kv_memory_bytes)), small)
    if device.type == "cuda":  # KV memory by the probe of peak memory
        engine = build_engine(replace(config, device="cuda"))
    else:
        loaded = load_model(Path(path), device, torch.float32)
        config = replace(config, kv_memory_bytes=kv_memory_bytes)
        engine = assemble_engine(config, loaded, _interpreted, time.perf_counter())
    actual = _run(engine, small)
    return {"requests": len(expected), "same_tokens": sum(actual[i] == expected[i] for i in expected)}


def _interpreted(pool: KVPool, page_size: int, loaded: LoadedModel) -> TritonBackend:
    return TritonBackend(
        pool,
        page_size,
        loaded.windows,
        loaded.num_query_heads,
        num_programs(loaded.device),
        has_sinks=loaded.has_sinks,
    )


def _run(engine: Engine, small: bool) -> dict[int, list[int]]:
    rng = np.random.default_rng(0)
    scale, degree = (1, 1) if small else (16, 4)
    requests = []

    def ids(count: int) -> list[int]:
        return rng.integers(5, 300, count).tolist()

    for _ in range(degree):
        root = ids(20 * scale)
        for _ in range(2):
            middle = root + ids(6 * scale)
            prompts = [middle + ids(2 * scale) for _ in range(degree)]
            requests += [np.array(prompt, np.int32) for prompt in prompts]
    sampling = SamplingParams(max_tokens=2 if small else 32, temperature=0, ignore_eos=True)
    refused = engine.add([Request(i, prompt, sampling) for i, prompt in enumerate(requests)])
    assert not refused, refused
    outputs: dict[int, list[int]] = {}
    while engine.has_work:
        outputs |= {done.request_id: done.output_ids.tolist() for done in engine.step()}
    return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes for the interpreter")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id or directory")
    arguments = parser.parse_args()
    if not (INTERPRETED or torch.cuda.is_available()):
        sys.exit("torch sees no GPU here; TRITON_INTERPRET=1 runs the same steps without one (use --small).")
    device = torch.device("cpu" if INTERPRETED else "cuda")
    name = "interpreter" if INTERPRETED else torch.cuda.get_device_name()

    values = check_values(device, arguments.small)
    speeds = []
    for step_name, step in speed_steps(arguments.small).items():
        speeds.append(measure_speed(step_name, step, device, arguments.small))
        print(speeds[-1], flush=True)
    tokens = check_tokens(arguments.model, device, arguments.small)
    wrong = [result for result in values if "wrong" in result]
    print(json.dumps({"device": name, "values": values, "speeds": speeds, "tokens": tokens}))
    # A near-tie may turn with rounding; more than a few do not.
    sys.exit(bool(wrong) or tokens["same_tokens"] < 0.9 * tokens["requests"])


if __name__ == "__main__":
    main()
