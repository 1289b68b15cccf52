"""Log probabilities of chosen and likeliest tokens, for the rows that ask."""

from collections.abc import Sequence

import numpy as np
import torch

from engine.request import TokenIds
from engine.scheduling.batch import RowLogprobs, SpecialRow

# Bounds the float32 copies: 256 rows of 128,000 tokens are 0.13 GB each.
_ROWS_AT_ONCE = 256


def row_logprobs(
    logits: torch.Tensor, token_ids: TokenIds, rows: Sequence[SpecialRow]
) -> tuple[RowLogprobs, ...]:
    """Of the model's own distribution: a log-softmax of the logits as they are, before temperature and edits.

    logits: float [S, vocab]. token_ids: int32 [S], what was chosen.
    Returns: one for each of `rows` that asks.
    """
    asking = [row for row in rows if row.sampling.top_logprobs is not None]
    found: list[RowLogprobs] = []
    for start in range(0, len(asking), _ROWS_AT_ONCE):
        found += _some(logits, token_ids, asking[start : start + _ROWS_AT_ONCE])
    return tuple(found)


def _some(logits: torch.Tensor, token_ids: TokenIds, rows: Sequence[SpecialRow]) -> list[RowLogprobs]:
    index = np.array([row.index for row in rows])
    logprobs = torch.log_softmax(logits[torch.from_numpy(index).to(logits.device)].float(), dim=-1)
    chosen = torch.from_numpy(token_ids[index].astype(np.int64)).to(logits.device)
    of_chosen = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    num_top = [min(row.sampling.top_logprobs or 0, logits.shape[-1]) for row in rows]
    top = logprobs.topk(max(num_top), dim=-1)
    top_ids, of_top = top.indices.cpu().numpy().astype(np.int32), top.values.cpu().numpy()
    found: list[RowLogprobs] = []
    for i, (row, count) in enumerate(zip(rows, num_top, strict=True)):
        ids, values = top_ids[i, :count].copy(), of_top[i, :count].copy()
        if row.sampling.logprobs_of:
            ids = np.array(row.sampling.logprobs_of, dtype=np.int32)
            values = logprobs[i, torch.from_numpy(ids).to(logits.device).long()].cpu().numpy()
        found.append(RowLogprobs(row.index, of_chosen[i], ids, values))
    return found
