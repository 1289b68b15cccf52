import numpy as np
import pytest

from engine.cost_model import CostModel
from engine.estimate import default_kv_memory, estimate
from engine.hardware import HARDWARE, MODELS
from engine.request import Request, SamplingParams

COST = CostModel(MODELS["llama-3.1-8b"], HARDWARE["a100"])


def _requests(prompts, max_tokens=4, ignore_eos=True):
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
    return [
        Request(index, np.array(prompt, dtype=np.int32), sampling) for index, prompt in enumerate(prompts)
    ]


def _estimate(requests, num_tokens=10_000):
    return estimate(
        requests, COST, kv_memory_bytes=num_tokens * COST.kv_bytes_per_token, max_batch_tokens=256
    )


def test_figures_of_a_job_that_shares():
    shared = list(range(160))
    figures = _estimate(_requests([[*shared, 1000 + index] for index in range(10)]))
    assert (figures.requests, figures.prompt_tokens, figures.unique_tokens) == (10, 1610, 170)
    assert figures.computed_tokens == 170
    assert figures.output_tokens == 40
    assert figures.saving == figures.bound_saving == pytest.approx(1 - 170 / 1610)
    assert 0 <= figures.lru_saving <= figures.saving
    assert 0 < figures.optimum_seconds < figures.seconds
    assert 0 < figures.peak_kv_bytes <= figures.kv_memory_bytes


def test_what_cannot_fit_is_refused_and_not_counted():
    figures = _estimate(_requests([[1] * 50, [2] * 500]), num_tokens=128)
    assert [refusal.request_id for refusal in figures.refused] == [1]
    assert (figures.requests, figures.prompt_tokens) == (1, 50)


def test_nothing_to_estimate():
    figures = _estimate([])
    assert (figures.requests, figures.saving, figures.seconds) == (0, 0.0, 0.0)


def test_outputs_are_assumed_below_their_limit():
    figures = _estimate(_requests([[1, 2, 3]], max_tokens=2000, ignore_eos=False))
    assert 1 < figures.output_tokens < 2000


def test_a_gpu_keeps_what_weights_and_activations_leave():
    left = default_kv_memory(COST, 4096)
    assert 50 < left / 2**30 < 0.9 * 79.15 - 15
