"""From logits to token ids, all rows at once, independent of a row's neighbours.

A sampled row draws one uniform number from its own seed and its position in its own output, and takes
the token at which its cumulative probability passes that number (inverse transform sampling). Nothing
else is random, so a request samples the same text alone, in a crowd, or after preemption.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from engine.scheduling.batch import StepBatch

# Bounds the float64 copies that drawing makes: 256 rows of 128,000 tokens are 0.26 GB each.
_ROWS_AT_ONCE = 256


def sample(logits: torch.Tensor, batch: StepBatch) -> NDArray[np.int32]:
    """logits float [S, vocab], row i for the batch's i-th sampled row; returns int32 [S]."""
    token_ids = logits.argmax(dim=-1)
    drawn = np.flatnonzero(batch.temperature > 0)
    for start in range(0, len(drawn), _ROWS_AT_ONCE):
        some = drawn[start : start + _ROWS_AT_ONCE]
        rows = torch.from_numpy(some).to(logits.device)
        noise = uniform(batch.seeds[some], batch.num_generated[some])
        token_ids[rows] = _draw(logits[rows], batch.temperature[some], batch.top_p[some], noise)
    return token_ids.cpu().numpy().astype(np.int32)


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.int32]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): the SplitMix64 finaliser (Steele et al., 2014),
    applied to the seed and again to seed and position together."""
    mixed = _mix(_mix(seeds.astype(np.uint64)) + positions.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _draw(
    logits: torch.Tensor,
    temperature: NDArray[np.float32],
    top_p: NDArray[np.float32],
    noise: NDArray[np.float64],
) -> torch.Tensor:
    """logits [R, vocab] to token ids int64 [R]."""

    def column(values: NDArray[np.floating]) -> torch.Tensor:
        return torch.from_numpy(values).to(logits.device, torch.float64)[:, None]

    # float64: a cumulative sum over a whole vocabulary loses too much in float32
    probabilities = torch.softmax(logits.double() / column(temperature), dim=-1)
    token_ids = _inverse_transform(probabilities, column(noise))
    nucleus = np.flatnonzero(top_p < 1)
    if len(nucleus):  # sorting costs most, so only the rows that ask for it are sorted
        rows = torch.from_numpy(nucleus).to(logits.device)
        ordered, vocabulary = probabilities[rows].sort(dim=-1, descending=True, stable=True)
        # Kept: the smallest set of likeliest tokens whose probability reaches top_p, the first always.
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill((before >= column(top_p[nucleus])) & (before > 0), 0)
        chosen = _inverse_transform(ordered, column(noise[nucleus]))
        token_ids[rows] = vocabulary.gather(1, chosen[:, None])[:, 0]
    return token_ids


def _inverse_transform(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Index at which the cumulative weight passes noise * total: weights [R, n], noise [R, 1], int64 [R]."""
    cumulative = weights.cumsum(dim=-1)
    target = noise * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)
