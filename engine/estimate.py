"""What a job would cost, without running it: planned for real, then simulated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.cost_model import CostModel, HardwareProfile, ModelShape
from engine.hardware import HARDWARE
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.request import Refusal, Request
from engine.rivals import StreamingEngine
from engine.simulation import job_work, simulate

PAGE_SIZE = 16
# A streaming engine's own defaults, see rivals.py.
_STREAMING_SEQS, _STREAMING_BATCH_TOKENS = 256, 2048
# Of a GPU's memory; the rest is left to the framework. And the most sequences sampled in a step.
_UTILIZATION, _MAX_SAMPLED = 0.9, 1024
# Tokens in a step on a GPU: the best of six sizes in the simulator, on one job (benchmarks/LOG.md).
GPU_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Estimate:
    """A job before it runs. Savings are 1 - computed / all prompt tokens, as fractions.

    output_tokens: as assumed, since nobody knows: max_tokens with ignore_eos, else the length that the engine
        itself believes before it has seen any output.
    lru_saving: what a streaming engine's prefix cache would find of the same file, in the order of its lines.
    bound_saving: that of the whole prefix tree, which nothing can beat.
    optimum_seconds: the sum of each operator's roofline at best sharing.
    """

    requests: int
    prompt_tokens: int
    unique_tokens: int
    computed_tokens: int
    output_tokens: int
    saving: float
    lru_saving: float
    bound_saving: float
    seconds: float
    optimum_seconds: float
    steps: int
    peak_kv_bytes: int
    kv_memory_bytes: int
    refused: tuple[Refusal, ...]


def hardware_profile(
    name: str, shape: ModelShape, num_threads: int | None = None, quantize: str | None = None
) -> HardwareProfile:
    """A known device, or "cpu": this machine, measured now for this model (some seconds, needs torch)."""
    if name != "cpu":
        return HARDWARE[name]
    import torch

    from engine.execution.calibrate import calibrate_cpu

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return calibrate_cpu(shape, quantize)


def default_kv_memory(cost: CostModel, max_batch_tokens: int) -> int:
    """Bytes for KV where nobody says: as the engine takes them here, or what a GPU has left."""
    if cost.hardware.name == "cpu":
        from engine.build import default_kv_bytes

        return default_kv_bytes()
    return cost.kv_memory_bytes(
        max_batch_tokens=max_batch_tokens, max_sampled=_MAX_SAMPLED, utilization=_UTILIZATION
    )


def max_tokens_of_one_request(cost: CostModel, kv_memory_bytes: int, page_size: int = PAGE_SIZE) -> int:
    """Most tokens, prompt and output, that the engine lets one request have in this KV memory."""
    from engine.build import pages_of_one_request

    return pages_of_one_request(kv_memory_bytes // (page_size * cost.kv_bytes_per_token)) * page_size


def estimate(
    requests: Sequence[Request],
    cost: CostModel,
    *,
    kv_memory_bytes: int,
    max_batch_tokens: int,
    page_size: int = PAGE_SIZE,
) -> Estimate:
    """Plan and simulate `requests`; those that can never fit are refused and left out of the figures."""
    num_pages = kv_memory_bytes // (page_size * cost.kv_bytes_per_token)
    plan = make_plan(requests, page_size=page_size, num_pages=num_pages)
    refused = {refusal.request_id for refusal in plan.refused}
    requests = [request for request in requests if request.request_id not in refused]
    outputs = _assumed_outputs(requests)
    run = simulate(
        requests,
        outputs,
        cost,
        num_pages=num_pages,
        page_size=page_size,
        max_batch_tokens=max_batch_tokens,
        plan=plan,
    )
    streaming = StreamingEngine(
        requests,
        outputs,
        cost,
        max_seqs=_STREAMING_SEQS,
        max_batch_tokens=_STREAMING_BATCH_TOKENS,
        kv_memory_bytes=kv_memory_bytes,
    ).run()
    prompt_tokens = plan.num_prompt_tokens
    return Estimate(
        requests=len(requests),
        prompt_tokens=prompt_tokens,
        unique_tokens=plan.num_unique_tokens,
        computed_tokens=run.num_computed_tokens,
        output_tokens=sum(outputs),
        saving=run.token_saving,
        lru_saving=streaming.token_saving,
        bound_saving=1 - plan.num_unique_tokens / prompt_tokens if prompt_tokens else 0.0,
        seconds=run.seconds,
        optimum_seconds=cost.optimum_seconds(job_work(requests, outputs)),
        steps=len(run.trace.seconds),
        peak_kv_bytes=int(run.trace.kv_tokens.max(initial=0)) * cost.kv_bytes_per_token,
        kv_memory_bytes=kv_memory_bytes,
        refused=plan.refused,
    )


def _assumed_outputs(requests: Sequence[Request]) -> list[int]:
    lengths: list[int] = (
        LengthEstimator()
        .expected_of_many(
            np.zeros(len(requests), dtype=np.int64),
            np.array([request.sampling.max_tokens for request in requests], dtype=np.int64),
            np.array([request.sampling.ignore_eos for request in requests], dtype=np.bool_),
        )
        .tolist()
    )
    return lengths
