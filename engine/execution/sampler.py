"""From logits to token ids, all rows at once, independent of a row's neighbours.

A sampled row draws one uniform number from its own seed and its position in its own output, and takes
the token at which its cumulative probability passes that number (inverse transform sampling). Nothing
else is random, so a request samples the same text alone, in a crowd, or after preemption.

A row with a grammar chooses among the tokens that may come; where these are few, only their logits are read.

In this order: a row's logits are edited (engine/execution/logit_edits.py), divided by its temperature, and
turned into probabilities; of these top_k keeps the likeliest k, top_p of what is left the smallest set of
likeliest tokens that has this share of it, min_p those at least so likely in proportion to the likeliest.
Of equally likely tokens the lower id comes first.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from engine.execution.logit_edits import edit_logits
from engine.scheduling.batch import Ints, StepBatch

# Bounds the float64 copies that drawing makes: 256 rows of 128,000 tokens are 0.26 GB each.
_ROWS_AT_ONCE = 256
# Sorting a vocabulary costs ten times what finding so many likeliest tokens does, and mostly they suffice.
_NUM_CANDIDATES = 1024

Rows = NDArray[np.int64]


def sample(logits: torch.Tensor, batch: StepBatch) -> NDArray[np.int32]:
    """logits float [S, vocab], row i for the batch's i-th sampled row; returns int32 [S]."""
    token_ids = logits.argmax(dim=-1)
    drawn = batch.temperature > 0
    edits = [row for row in batch.special if row.edits_logits]
    masks = batch.masks() if batch.masks is not None else None
    if masks is not None:
        few = [row for row in edits if row.index in masks.few and not row.sampling.has_penalties]
        edits = [row for row in edits if row.index not in masks.few or row.sampling.has_penalties]
        for start in range(0, len(few), _ROWS_AT_ONCE):
            rows = np.array([row.index for row in few[start : start + _ROWS_AT_ONCE]])
            token_ids[_to(logits, rows)] = _choose_among(logits, batch, rows, masks.few)
            drawn[rows] = False
    for start in range(0, len(edits), _ROWS_AT_ONCE):
        some = edits[start : start + _ROWS_AT_ONCE]
        rows = np.array([row.index for row in some])
        on_device = _to(logits, rows)
        token_ids[on_device] = _choose(edit_logits(logits[on_device], some, masks), batch, rows)
        drawn[rows] = False
    drawn_rows = np.flatnonzero(drawn)
    for start in range(0, len(drawn_rows), _ROWS_AT_ONCE):
        rows = drawn_rows[start : start + _ROWS_AT_ONCE]
        on_device = _to(logits, rows)
        token_ids[on_device] = _draw(logits[on_device], batch, rows)
    return token_ids.cpu().numpy().astype(np.int32)


def _choose(logits: torch.Tensor, batch: StepBatch, rows: Rows) -> torch.Tensor:
    """logits [R, n] of the sampled rows `rows` to indices int64 [R], drawn where the row is hot."""
    hot = np.flatnonzero(batch.temperature[rows] > 0)
    if len(hot) == len(rows):
        return _draw(logits, batch, rows)
    chosen = logits.argmax(dim=-1)
    if len(hot):
        on_device = _to(logits, hot)
        chosen[on_device] = _draw(logits[on_device], batch, rows[hot])
    return chosen


def _choose_among(
    logits: torch.Tensor, batch: StepBatch, rows: Rows, few: Mapping[int, Ints]
) -> torch.Tensor:
    """Token ids int64 [R] of rows that only `few` tokens may follow. logits: [S, vocab], of all rows."""
    many = [few[row] for row in rows.tolist()]
    sizes = np.array([len(ids) for ids in many])
    padded = np.zeros((len(many), sizes.max()), dtype=np.int64)
    is_token = np.arange(padded.shape[1]) < sizes[:, None]
    padded[is_token] = np.concatenate(many)
    token_ids = torch.from_numpy(padded).to(logits.device)
    among = logits[_to(logits, rows)[:, None], token_ids].float()
    among.masked_fill_(torch.from_numpy(~is_token).to(logits.device), float("-inf"))
    return token_ids.gather(1, _choose(among, batch, rows)[:, None])[:, 0]


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


def _draw(logits: torch.Tensor, batch: StepBatch, rows: Rows) -> torch.Tensor:
    """logits [R, vocab] of the sampled rows `rows` to token ids int64 [R]."""

    def column(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float64)).to(logits.device)[:, None]

    # float64: a cumulative sum over a whole vocabulary loses too much in float32
    probabilities = torch.softmax(logits.double() / column(batch.temperature[rows]), dim=-1)
    noise = column(uniform(batch.seeds[rows], batch.num_generated[rows]))
    token_ids = _inverse_transform(probabilities, noise)
    top_k, top_p, min_p = batch.top_k[rows], batch.top_p[rows], batch.min_p[rows]
    narrow = np.flatnonzero((top_k > 0) | (top_p < 1) | (min_p > 0))
    if len(narrow):  # ordering costs most, so only the rows that ask for it are ordered
        on_device = _to(logits, narrow)
        limits = torch.cat([column(values[narrow]) for values in (top_k, top_p, min_p)], dim=-1)
        token_ids[on_device] = _draw_narrowed(
            probabilities[on_device], limits, noise[on_device], _NUM_CANDIDATES
        )
    return token_ids


def _draw_narrowed(
    probabilities: torch.Tensor, limits: torch.Tensor, noise: torch.Tensor, num_candidates: int
) -> torch.Tensor:
    """As `_inverse_transform`, among the tokens that a row's limits keep.

    limits: float64 [R, 3]: top_k (0: all), top_p, min_p.
    num_candidates: the likeliest tokens, which are looked at first; rows for which they do not settle what is
        kept are done again with the whole vocabulary.
    """
    num_tokens = probabilities.shape[-1]
    num_candidates = min(num_candidates, num_tokens)
    top_k, top_p, min_p = limits[:, :1], limits[:, 1:2], limits[:, 2:]
    # In order of ids before they are sorted by probability, so that ties end in order of ids.
    candidates = probabilities.topk(num_candidates, sorted=False).indices.sort(dim=-1).values
    ordered, order = probabilities.gather(1, candidates).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(num_candidates, device=ordered.device)
    is_top = (rank < top_k) | (top_k == 0)
    total = torch.where(top_k > 0, (ordered * is_top).sum(dim=-1, keepdim=True), 1.0)
    before = ordered.cumsum(dim=-1) - ordered
    kept = is_top & (before < top_p * total) & (ordered >= min_p * ordered[:, :1])
    kept |= rank == 0  # the likeliest, whatever the limits are
    chosen = _inverse_transform(ordered * kept, noise)
    token_ids = candidates.gather(1, order.gather(1, chosen[:, None]))[:, 0]
    if num_candidates < num_tokens:
        last_kept = ordered.gather(1, kept.sum(dim=-1, keepdim=True) - 1)
        is_open = ((last_kept == ordered[:, -1:]) | (top_k > num_candidates))[:, 0]
        rows = is_open.nonzero()[:, 0]
        if len(rows):
            token_ids[rows] = _draw_narrowed(probabilities[rows], limits[rows], noise[rows], num_tokens)
    return token_ids


def _inverse_transform(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Index at which the cumulative weight passes noise * total: weights [R, n], noise [R, 1], int64 [R]."""
    cumulative = weights.cumsum(dim=-1)
    target = noise * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)


def _to(like: torch.Tensor, rows: Rows) -> torch.Tensor:
    return torch.from_numpy(rows).to(like.device)
