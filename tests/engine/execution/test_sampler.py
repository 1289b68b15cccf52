"""Sampling: exact where it is greedy, right in distribution where it is not, deaf to neighbours."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.sampler import sample, uniform
from engine.scheduling.batch import StepBatch


def _batch(temperature, top_p=1.0, seeds=None, num_generated=0):
    rows = len(seeds) if seeds is not None else 1
    empty = {field.name: np.zeros(0, np.int32) for field in dataclasses.fields(StepBatch)}
    columns = {
        "temperature": np.full(rows, temperature, np.float32),
        "top_p": np.full(rows, top_p, np.float32),
        "seeds": np.asarray(seeds if seeds is not None else [0], np.uint64),
        "num_generated": np.full(rows, num_generated, np.int32),
    }
    return StepBatch(**(empty | columns))


@pytest.mark.parametrize("top_p", [0.0, 1e-30])
def test_a_nucleus_of_nothing_keeps_the_likeliest_token(top_p):
    logits = torch.tensor([[1.0, 5.0, 0.0, -3.0]]).expand(50, -1)
    assert set(sample(logits, _batch(1.0, top_p, range(50)))) == {1}


def test_temperature_zero_takes_the_likeliest_token():
    logits = torch.randn(7, 50)
    assert sample(logits, _batch(0.0, seeds=range(7))).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (1.3, 0.4)]
)
def test_draws_follow_the_exact_distribution(temperature, top_p):
    """Chi-squared over 20,000 seeds; the bound is passed by a right sampler but once in a million runs."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -1.0])
    exact = torch.softmax(logits / temperature, -1).double().numpy()
    kept = np.cumsum(exact) - exact < top_p  # the logits are sorted already
    exact = np.where(kept, exact, 0) / exact[kept].sum()
    seeds = np.arange(20_000)
    drawn = sample(logits.expand(len(seeds), -1), _batch(temperature, top_p, seeds))
    counts = np.bincount(drawn, minlength=len(logits))
    assert counts[~kept].sum() == 0
    expected = exact[kept] * len(seeds)
    chi_squared = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = kept.sum() - 1
    # Wilson-Hilferty: the upper 1e-6 point (4.7534 standard normal deviations) of chi-squared
    bound = degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_squared < bound


@given(
    rows=st.integers(1, 9),
    chosen=st.integers(0, 8),
    seed=st.integers(0, 2**63),
    position=st.integers(0, 9999),
)
@settings(max_examples=50, deadline=None)
def test_a_row_draws_the_same_alone_and_in_a_crowd(rows, chosen, seed, position):
    chosen %= rows
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits = torch.randn(rows, 40, generator=generator)
    seeds = [(seed + 7 * row) % 2**64 for row in range(rows)]
    crowd = sample(logits, _batch(0.9, 0.8, seeds, position))
    alone = sample(logits[chosen : chosen + 1], _batch(0.9, 0.8, seeds[chosen : chosen + 1], position))
    assert crowd[chosen] == alone[0]


def test_noise_is_uniform_and_differs_by_seed_and_position():
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200, dtype=np.int32))
    noise = uniform(seeds.ravel(), positions.ravel())
    assert len(np.unique(noise)) == noise.size
    assert noise.min() >= 0
    assert noise.max() < 1
    counts, _ = np.histogram(noise, bins=100, range=(0, 1))
    assert abs(counts - 400).max() < 6 * math.sqrt(400)
