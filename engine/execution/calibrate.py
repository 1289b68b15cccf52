"""This machine as a hardware profile: a few small jobs run for real, and the time of each part fitted.

The jobs go through the real scheduler, runner and attention, on a few layers of random weights in the shape
of the model that is asked for. Takes some seconds for a small model.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from engine.attention.backend import AttentionBackend
from engine.attention.cpu import cpu_backend
from engine.attention.interface import ATTENTION_NAME, AttentionStep, register
from engine.attention.kv_pool import KVPool, KVShape
from engine.cost_model import HardwareProfile, ModelShape, RateCurve, StepWork, shared_work
from engine.execution.cpu_layers import prepare_for_cpu
from engine.execution.runner import Runner
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.request import Request, SamplingParams
from engine.scheduling.batch import StepBatch
from engine.scheduling.scheduler import Scheduler

Floats = NDArray[np.float64]

# Weights of the layers that are run: more than a processor's cache, so that they come from memory as those of
# a whole model do.
_WEIGHT_BYTES = 64 << 20
_MAX_BATCH_TOKENS = 1024
_PAGE_SIZE = 16
# (groups, members, prefix tokens, own tokens): decode steps of 1 to 256 rows, with and without prefixes.
_JOBS = [
    (1, 1, 0, 1024),
    (4, 1, 0, 64),
    (1, 16, 512, 24),
    (1, 64, 1024, 16),
    (64, 1, 0, 40),
    (16, 4, 96, 8),
    (256, 1, 0, 8),
]
_OUTPUT_TOKENS = 6


@dataclass(slots=True)
class _Timing:
    """Seconds of one step's parts; `layers` includes attention."""

    work: StepWork
    total: float = 0.0
    layers: float = 0.0
    head: float = 0.0
    attention: float = 0.0


@dataclass(slots=True)
class _Stopwatch:
    """A backend that times the attention it passes on."""

    backend: AttentionBackend
    seconds: float = 0.0
    marks: dict[str, float] = field(default_factory=dict)

    def plan(self, batch: StepBatch) -> AttentionStep:
        return _TimedStep(self, self.backend.plan(batch))


@dataclass(slots=True)
class _TimedStep:
    watch: _Stopwatch
    step: AttentionStep

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        started = time.perf_counter()
        output = self.step.attend(layer, query, key, value, scaling, soft_cap, sinks)
        self.watch.seconds += time.perf_counter() - started
        return output


def calibrate_cpu(shape: ModelShape, quantize: str | None = None) -> HardwareProfile:
    """The rates at which this machine runs a model of this shape in fp32, or with its linear layers
    quantized, with torch's present threads."""
    layer_bytes = 4 * shape.ops_per_row // (2 * shape.num_layers)
    num_layers = int(np.clip(-(-_WEIGHT_BYTES // layer_bytes), 1, shape.num_layers))
    model = _random_model(shape, num_layers, quantize)
    timings = list(_run_jobs(model, shape, num_layers))
    per_item, attention = _fit_attention(timings, shape, num_layers)
    return HardwareProfile(
        name="cpu",
        dtype_bytes=4,
        memory_bytes=psutil.virtual_memory().total,
        memory_bandwidth=_copy_bandwidth(),
        gemm=_fit_layers(timings, shape, num_layers),
        head=_fit_head(timings, shape),
        attention=attention,
        elementwise_seconds_per_value=0.0,  # part of the layers' measured rate
        launch_seconds_per_layer=0.0,
        host_seconds_per_step=float(np.median([step.total - step.layers - step.head for step in timings])),
        item_seconds_per_layer=per_item,
    )


def _random_model(shape: ModelShape, num_layers: int, quantize: str | None) -> LlamaForCausalLM:
    config = LlamaConfig(
        num_hidden_layers=num_layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,  # the embedding costs nothing; only the head's size matters
        max_position_embeddings=4096,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    prepare_for_cpu(model, quantize=quantize)  # as the engine does
    register()
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def _run_jobs(model: LlamaForCausalLM, shape: ModelShape, num_layers: int) -> Iterator[_Timing]:
    num_pages = 8192
    cpu = torch.device("cpu")
    kv_shapes = [KVShape(shape.num_kv_heads, shape.head_dim, shape.head_dim)] * num_layers
    pool = KVPool(kv_shapes, num_pages * _PAGE_SIZE, torch.float32, cpu)
    watch = _Stopwatch(cpu_backend(pool, _PAGE_SIZE, [None] * num_layers, [shape.num_heads] * num_layers))
    _mark(watch, "layers", model.model.layers[0], model.model.layers[-1])
    _mark(watch, "head", model.lm_head, model.lm_head)
    runner = Runner(model, watch, cpu)
    list(_run_job(_requests(*_JOBS[0], shape.vocab), runner, watch, num_pages))  # warms up
    for job in _JOBS:
        yield from _run_job(_requests(*job, shape.vocab), runner, watch, num_pages)


def _mark(watch: _Stopwatch, name: str, first: torch.nn.Module, last: torch.nn.Module) -> None:
    """Adds the time from the start of `first` to the end of `last` to the watch's marks."""

    def start(*_: object) -> None:
        watch.marks[name] = -time.perf_counter()

    def stop(*_: object) -> None:
        watch.marks[name] += time.perf_counter()

    first.register_forward_pre_hook(start)
    last.register_forward_hook(stop)


def _requests(groups: int, members: int, prefix: int, own: int, vocab: int) -> list[Request]:
    rng = np.random.default_rng(0)
    sampling = SamplingParams(max_tokens=_OUTPUT_TOKENS, temperature=0.0, ignore_eos=True)
    prompts = [
        np.concatenate((shared, rng.integers(0, vocab, own, dtype=np.int32)))
        for shared in rng.integers(0, vocab, (groups, prefix), dtype=np.int32)
        for _ in range(members)
    ]
    return [Request(index, prompt, sampling) for index, prompt in enumerate(prompts)]


def _run_job(
    requests: Sequence[Request], runner: Runner, watch: _Stopwatch, num_pages: int
) -> Iterator[_Timing]:
    scheduler = Scheduler(
        PagePool(num_pages, _PAGE_SIZE),
        max_batch_tokens=_MAX_BATCH_TOKENS,
        eos_token_ids=frozenset(),
        lengths=LengthEstimator(),
    )
    scheduler.add(make_plan(requests, page_size=_PAGE_SIZE, num_pages=num_pages))
    while scheduler.has_work:
        started = time.perf_counter()
        batch = scheduler.next_batch()
        timing = _Timing(shared_work(batch))
        watch.seconds = 0.0
        scheduler.commit(batch, runner.run(batch).token_ids)
        timing.total = time.perf_counter() - started
        timing.layers, timing.head = watch.marks["layers"], watch.marks["head"]
        timing.attention = watch.seconds
        yield timing


def _fit_layers(timings: Sequence[_Timing], shape: ModelShape, num_layers: int) -> RateCurve:
    """Operations of the matrices over all the time of a layer outside attention, by rows."""
    seconds: dict[int, list[float]] = {}
    for step in timings:
        seconds.setdefault(step.work.num_rows, []).append(step.layers - step.attention)
    ops = shape.ops_per_row * num_layers / shape.num_layers
    rows = sorted(seconds)
    return RateCurve(tuple(rows), tuple(ops * count / float(np.median(seconds[count])) for count in rows))


def _fit_head(timings: Sequence[_Timing], shape: ModelShape) -> RateCurve:
    seconds: dict[int, list[float]] = {}
    for step in timings:
        if step.work.num_sampled:
            seconds.setdefault(step.work.num_sampled, []).append(step.head)
    ops = 2 * shape.hidden * shape.vocab
    rows = sorted(seconds)
    return RateCurve(tuple(rows), tuple(ops * count / float(np.median(seconds[count])) for count in rows))


def _fit_attention(timings: Sequence[_Timing], shape: ModelShape, num_layers: int) -> tuple[float, RateCurve]:
    """Seconds of an item of several rows in one layer, and the rate by stacked rows: relative least squares
    with nothing negative over all steps."""
    group = shape.num_heads // shape.num_kv_heads
    knots = np.array([group, 16 * group, 64 * group, 512 * group], dtype=np.float64)
    ops_per_pair = shape.ops_per_pair / shape.num_layers
    rows = []
    for step in timings:
        work = step.work
        stacked = np.log(work.item_rows * group)
        ops = work.item_pairs * ops_per_pair
        shares = [float(ops @ np.interp(stacked, np.log(knots), unit)) for unit in np.eye(len(knots))]
        rows.append([float((work.item_rows > 1).sum()), *shares])
    measured = np.array([step.attention for step in timings]) / num_layers
    fitted = _nonnegative_fit(np.array(rows) / measured[:, None])
    # A knot that no step constrains would have no time at all: it takes the fastest that one has.
    seconds_per_op = np.where(fitted[1:] > 0, fitted[1:], fitted[1:][fitted[1:] > 0].min())
    return float(fitted[0]), RateCurve(tuple(knots.tolist()), tuple((1 / seconds_per_op).tolist()))


def _nonnegative_fit(columns: Floats) -> Floats:
    """x >= 0 that brings columns @ x closest to ones, by coordinate descent."""
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    scaled = columns / scale
    gram, target = scaled.T @ scaled, scaled.sum(axis=0)
    x = np.zeros(len(gram))
    for _ in range(2000):
        for index in range(len(x)):
            if gram[index, index] > 0:
                x[index] = max(x[index] + (target[index] - gram[index] @ x) / gram[index, index], 0.0)
    solution: Floats = x / scale
    return solution


def _copy_bandwidth() -> float:
    """Bytes a second read and written by a copy far larger than the cache."""
    source = torch.ones(16 << 20)
    target = torch.empty_like(source)
    target.copy_(source)
    started = time.perf_counter()
    for _ in range(4):
        target.copy_(source)
    return 4 * 2 * source.numel() * 4 / (time.perf_counter() - started)
