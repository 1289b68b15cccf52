"""What changes a row's logits before its token is chosen: penalties, biases, tokens that may not come yet.

Only rows that ask come here. Nothing is kept between steps: what a penalty needs to know are the tokens of
the sequence, which come with the step, so that preemption has nothing to rebuild. A step uploads and touches
one number for each token in question, not for each token of the vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.request import TokenIds
from engine.scheduling.batch import SpecialRow, TokenMasks
from engine.staging import to_device

_NO_TOKENS = np.empty(0, dtype=np.int32)


def edit_logits(
    logits: torch.Tensor, rows: Sequence[SpecialRow], masks: TokenMasks | None = None
) -> torch.Tensor:
    """logits [R, vocab] of `rows` to edited float32 [R, vocab].

    In this order: the repetition penalty (Keskar et al., 2019: divides positive logits, multiplies negative
    ones) for each token of prompt and output; what the frequency penalty takes for each time a token was put
    out and the presence penalty for each token that was; biases; tokens that may not come yet, or not by the
    row's grammar, become -inf.

    masks: of the step; None only where no row has a grammar.
    """
    logits = logits.float()
    every = logits.view(-1)
    where, penalty = _entries(logits, rows, _seen_tokens, lambda row: row.sampling.repetition_penalty)
    # A token that was seen twice has two entries that store the same value.
    before = every[where]
    every[where] = torch.where(before > 0, before / penalty, before * penalty)
    where, penalty = _entries(logits, rows, _counted_tokens, lambda row: row.sampling.frequency_penalty)
    every.index_add_(0, where, -penalty)
    where, penalty = _entries(logits, rows, _present_tokens, lambda row: row.sampling.presence_penalty)
    every[where] = every[where] - penalty
    where, bias = _entries(logits, rows, _biased_tokens, lambda row: _biases(row)[1])
    every.index_add_(0, where, bias)
    where, never = _entries(logits, rows, _banned_tokens, lambda row: float("-inf"))
    every[where] = never
    if masks is not None:
        _mask(logits, rows, masks)
    return logits


def _mask(logits: torch.Tensor, rows: Sequence[SpecialRow], masks: TokenMasks) -> None:
    """The device gets bits, an eighth of a byte for each token of the vocabulary, and unpacks them."""
    places = [place for place, row in enumerate(rows) if row.sampling.grammar is not None]
    if not places:
        return
    allowed = masks.allowed[[masks.row[rows[place].index] for place in places]]
    (packed,) = to_device([allowed], torch.uint8, logits.device)
    bit = 1 << torch.arange(8, dtype=torch.uint8, device=logits.device)
    banned = ((packed[:, :, None] & bit) == 0).flatten(1)[:, : logits.shape[-1]]
    (where,) = to_device([np.array(places)], torch.int64, logits.device)
    masked = logits if len(places) == len(rows) else logits[where]
    masked[:, : banned.shape[-1]].masked_fill_(banned, float("-inf"))
    masked[:, banned.shape[-1] :] = float("-inf")
    if masked is not logits:
        logits[where] = masked


def _banned_tokens(row: SpecialRow) -> TokenIds:
    # A grammar's mask knows of them, and of outputs that can do nothing but end.
    return row.banned_ids if row.sampling.grammar is None else _NO_TOKENS


def _seen_tokens(row: SpecialRow) -> TokenIds:
    if row.sampling.repetition_penalty == 1:
        return _NO_TOKENS
    return np.concatenate((row.prompt_ids, row.output_ids))


def _counted_tokens(row: SpecialRow) -> TokenIds:
    return row.output_ids if row.sampling.frequency_penalty else _NO_TOKENS


def _present_tokens(row: SpecialRow) -> TokenIds:
    return row.output_ids if row.sampling.presence_penalty else _NO_TOKENS


def _biased_tokens(row: SpecialRow) -> TokenIds:
    return _biases(row)[0]


def _biases(row: SpecialRow) -> tuple[TokenIds, NDArray[np.float32]]:
    pairs = row.sampling.logit_bias
    token_ids = np.fromiter((token_id for token_id, _ in pairs), np.int32, len(pairs))
    return token_ids, np.fromiter((bias for _, bias in pairs), np.float32, len(pairs))


def _entries(
    logits: torch.Tensor,
    rows: Sequence[SpecialRow],
    tokens_of: Callable[[SpecialRow], TokenIds],
    values_of: Callable[[SpecialRow], float | NDArray[np.float32]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in the flattened logits, int64 [E], and a value for each, float32 [E].

    values_of: one value for all of a row's tokens, or one for each.
    """
    tokens = [tokens_of(row) for row in rows]
    vocab_size = logits.shape[-1]
    where = [ids.astype(np.int64) + index * vocab_size for index, ids in enumerate(tokens)]
    values = [np.broadcast_to(values_of(row), ids.shape) for row, ids in zip(rows, tokens, strict=True)]
    (on_device,) = to_device([np.concatenate(where)], torch.int64, logits.device)
    return on_device, torch.from_numpy(np.concatenate(values, dtype=np.float32)).to(logits.device)
