"""Sampling: exact where it is greedy, right in distribution where it is not, deaf to neighbours."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.sampler import sample, uniform
from engine.request import Grammar, GrammarKind, SamplingParams
from engine.scheduling.batch import TokenMasks
from tests.engine.execution.sampled_rows import sampled_rows

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -1.0])
# The upper 1e-6 point of the standard normal distribution.
_DEVIATIONS = 4.7534


def _draw(logits, num_generated=0, seeds=(0,), prompt=(), output=(), **sampling):
    params = [SamplingParams(max_tokens=99, seed=seed, **sampling) for seed in seeds]
    return sample(logits, sampled_rows(params, num_generated, prompt, output))


def _assert_drawn_by(exact: np.ndarray, logits: torch.Tensor, **sampling) -> None:
    """Chi-squared of 20,000 seeds; a right sampler passes all but once in a million runs with other seeds."""
    seeds = range(20_000)
    counts = np.bincount(_draw(logits.expand(len(seeds), -1), seeds=seeds, **sampling), minlength=len(logits))
    kept = exact > 0
    assert counts[~kept].sum() == 0
    expected = exact[kept] / exact.sum() * len(seeds)
    chi_squared = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = kept.sum() - 1
    if degrees == 0:
        return
    # Wilson-Hilferty: the upper point of chi-squared.
    bound = degrees * (1 - 2 / (9 * degrees) + _DEVIATIONS * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_squared < bound


def _softmax(logits) -> np.ndarray:
    return torch.softmax(torch.as_tensor(logits).double(), -1).numpy()


@pytest.mark.parametrize("limit", [{"top_p": 0.0}, {"top_p": 1e-30}, {"min_p": 1.0}, {"top_k": 1}])
def test_the_narrowest_limit_keeps_the_likeliest_token(limit):
    logits = torch.tensor([[1.0, 5.0, 0.0, -3.0]]).expand(50, -1)
    assert set(_draw(logits, seeds=range(50), **limit)) == {1}


def test_temperature_zero_takes_the_likeliest_token():
    logits = torch.randn(7, 50)
    greedy = logits.argmax(-1).tolist()
    assert _draw(logits, seeds=range(7), temperature=0.0).tolist() == greedy


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "kept"),
    [
        (1.0, 0, 1.0, 0.0, 6),
        (0.5, 0, 1.0, 0.0, 6),
        (2.0, 0, 1.0, 0.0, 6),
        (1.0, 0, 0.7, 0.0, 2),  # 0.45 + 0.27 reach 0.7
        (1.3, 0, 0.4, 0.0, 2),  # 0.38 + 0.26 reach 0.4
        (1.0, 3, 1.0, 0.0, 3),
        (1.0, 99, 1.0, 0.0, 6),
        (1.0, 0, 1.0, 0.1, 4),  # e^-2 = 0.135 is kept, e^-2.5 = 0.082 is not
        (1.0, 3, 0.8, 0.0, 2),  # of the three 0.51 + 0.31 reach 0.8; of all, 0.45 + 0.27 would not
        (1.0, 4, 0.9, 0.5, 2),
    ],
)
def test_draws_follow_the_exact_distribution(temperature, top_k, top_p, min_p, kept):
    exact = _softmax(LOGITS / temperature)
    exact[kept:] = 0  # the logits are sorted already
    _assert_drawn_by(exact, LOGITS, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


OUTPUT = (0, 0, 0, 2, 5)


@pytest.mark.parametrize(
    ("sampling", "edited"),
    [
        ({"frequency_penalty": 0.5}, [0.5, 1.5, 0.5, 0.0, -0.5, -1.5]),
        ({"frequency_penalty": -0.5}, [3.5, 1.5, 1.5, 0.0, -0.5, -0.5]),
        ({"presence_penalty": 0.5}, [1.5, 1.5, 0.5, 0.0, -0.5, -1.5]),
        # of prompt (1, 4) and output; what is negative moves away from zero too
        ({"repetition_penalty": 2.0}, [1.0, 0.75, 0.5, 0.0, -1.0, -2.0]),
        ({"repetition_penalty": 2.0, "presence_penalty": 1.0}, [0.0, 0.75, -0.5, 0.0, -1.0, -3.0]),
        ({"logit_bias": ((0, -3.0), (5, 2.5))}, [-1.0, 1.5, 1.0, 0.0, -0.5, 1.5]),
        ({"logit_bias": ((0, -100.0),), "temperature": 0.7}, [-98.0, 1.5, 1.0, 0.0, -0.5, -1.0]),
    ],
)
def test_edits_are_those_of_the_contract(sampling, edited):
    exact = _softmax(np.array(edited) / sampling.get("temperature", 1.0))
    exact[exact < 1e-12] = 0
    _assert_drawn_by(exact, LOGITS, prompt=(1, 4, 1), output=OUTPUT, **sampling)
    greedy = _draw(LOGITS[None], prompt=(1, 4, 1), output=OUTPUT, **sampling | {"temperature": 0.0})
    assert greedy[0] == int(np.argmax(edited))


def test_edits_of_half_precision_logits_are_not_rounded_away():
    logits = torch.tensor([[20.0, 20.0, 0.0]], dtype=torch.bfloat16)
    assert _draw(logits, temperature=0.0, logit_bias=((1, 0.01),))[0] == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_end_tokens_wait_for_the_least_number_of_tokens(temperature):
    params = [SamplingParams(max_tokens=9, temperature=temperature, seed=s, min_tokens=2) for s in range(200)]
    logits = LOGITS.expand(200, -1)
    early = sample(logits, sampled_rows(params, 1, banned=(0, 1)))
    assert set(early.tolist()).isdisjoint({0, 1})
    assert 0 in sample(logits, sampled_rows(params, 2))


GRAMMAR = Grammar(GrammarKind.REGEX, "a")


def _held(logits, allowed, *, few, num_rows=20_000, **sampling):
    """Tokens of rows that only `allowed` may follow; every third row has no grammar."""
    params = [
        SamplingParams(max_tokens=99, seed=seed, grammar=GRAMMAR if seed % 3 else None, **sampling)
        for seed in range(num_rows)
    ]
    held = [seed for seed in range(num_rows) if seed % 3]
    bits = np.zeros(8, np.uint8)
    bits[list(allowed)] = 1
    masks = TokenMasks(
        {row: place for place, row in enumerate(held)},
        np.broadcast_to(np.packbits(bits, bitorder="little"), (len(held), 1)),
        {row: np.array(allowed, np.int32) for row in held if few},
    )
    batch = sampled_rows(params, masks=masks, output=OUTPUT)
    return sample(logits.expand(num_rows, -1).clone(), batch)[held]


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(
    "sampling", [{}, {"top_p": 0.6}, {"top_k": 1}, {"presence_penalty": 1.5}, {"temperature": 0.0}]
)
def test_a_row_with_a_grammar_takes_what_it_allows(sampling, few):
    """In the proportions of the logits; ids behind the mask's last bit never come."""
    allowed = (1, 2, 4)
    logits = torch.cat([LOGITS, torch.full((6,), 9.0)])
    edited = LOGITS.numpy() - np.isin(np.arange(6), OUTPUT) * sampling.get("presence_penalty", 0.0)
    exact = np.where(np.isin(np.arange(6), allowed), _softmax(edited), 0)
    drawn = _held(logits, allowed, few=few, **sampling)
    if sampling.keys() <= {"presence_penalty"}:
        counts = np.bincount(drawn, minlength=6)
        expected = exact / exact.sum() * len(drawn)
        assert counts[exact == 0].sum() == 0
        assert (((counts - expected) ** 2)[exact > 0] / expected[exact > 0]).sum() < 30  # once in 3 million
    else:
        assert set(drawn.tolist()) == ({1, 2} if "top_p" in sampling else {1})


def test_few_and_many_tokens_are_chosen_among_alike():
    for sampling in ({}, {"top_k": 2}, {"min_p": 0.2}, {"temperature": 0.0}):
        drawn = [
            _held(LOGITS, (0, 3, 5), few=few, num_rows=600, **sampling).tolist() for few in (True, False)
        ]
        assert drawn[0] == drawn[1]


def test_of_equally_likely_tokens_the_lower_ids_are_kept():
    """Also where they lie on both sides of what is looked at before the whole vocabulary is."""
    flat = torch.zeros(400, 3_000)
    drawn = _draw(flat, seeds=range(400), top_k=5)
    assert set(drawn.tolist()) == set(range(5))
    half = flat.clone()
    half[:, 2_000:] = 1.0
    assert set(_draw(half, seeds=range(400), top_k=3).tolist()) == {2_000, 2_001, 2_002}


@pytest.mark.parametrize(
    "limit", [{"top_k": 2_000}, {"top_p": 0.9}, {"min_p": 1e-3}, {"top_k": 40, "top_p": 0.8}]
)
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_a_large_vocabulary_is_cut_where_a_full_sort_would_cut_it(limit, spread):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5_000, generator=generator) * spread
    seeds = range(300)
    drawn = _draw(logits.expand(len(seeds), -1), seeds=seeds, **limit)
    probabilities = _softmax(logits)
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    ordered[limit.get("top_k", 5_000) :] = 0
    before = (np.cumsum(ordered) - ordered) / ordered.sum()
    kept = (ordered > 0) & (before < limit.get("top_p", 1)) & (ordered >= limit.get("min_p", 0) * ordered[0])
    cumulative = np.cumsum(np.where(kept, ordered, 0))
    noise = uniform(np.array(seeds, np.uint64), np.zeros(len(seeds), np.int32))
    expected = order[np.searchsorted(cumulative, noise * cumulative[-1], side="right")]
    assert drawn.tolist() == expected.tolist()


_any_sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "top_k": st.sampled_from([0, 3]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "frequency_penalty": st.sampled_from([0.0, 0.7]),
        "presence_penalty": st.sampled_from([0.0, -0.4]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logit_bias": st.sampled_from([(), ((3, 2.0), (7, -5.0))]),
        "seed": st.integers(0, 2**64 - 1),
    }
).map(lambda values: SamplingParams(max_tokens=99, **values))


@given(
    rows=st.lists(_any_sampling, min_size=1, max_size=9),
    chosen=st.integers(0, 8),
    position=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_a_row_draws_the_same_alone_and_in_a_crowd(rows, chosen, position):
    chosen %= len(rows)
    logits = torch.randn(len(rows), 40, generator=torch.Generator().manual_seed(position))
    alone_logits = logits[chosen : chosen + 1].clone()
    crowd = sample(logits, sampled_rows(rows, position, prompt=(1, 2), output=(3, 3)))
    alone = sample(alone_logits, sampled_rows([rows[chosen]], position, prompt=(1, 2), output=(3, 3)))
    assert crowd[chosen] == alone[0]


def test_noise_is_uniform_and_differs_by_seed_and_position():
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200, dtype=np.int32))
    noise = uniform(seeds.ravel(), positions.ravel())
    assert len(np.unique(noise)) == noise.size
    assert noise.min() >= 0
    assert noise.max() < 1
    counts, _ = np.histogram(noise, bins=100, range=(0, 1))
    assert abs(counts - 400).max() < 6 * math.sqrt(400)
