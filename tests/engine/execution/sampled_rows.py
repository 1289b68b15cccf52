"""Steps as the sampler sees them: the sampled rows and nothing of the model's part."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from engine.request import SamplingParams
from engine.scheduling.batch import SpecialRow, StepBatch, TokenMasks


def sampled_rows(
    params: Sequence[SamplingParams],
    num_generated: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    banned: Sequence[int] = (),
    masks: TokenMasks | None = None,
) -> StepBatch:
    """One row a request; all have the same tokens so far, and may not take the banned ones."""
    columns = {
        field.name: np.zeros(0, np.int32)
        for field in dataclasses.fields(StepBatch)
        if field.name not in ("special", "masks")
    }
    columns |= {
        "temperature": np.array([one.temperature for one in params], np.float32),
        "top_p": np.array([one.top_p for one in params], np.float32),
        "top_k": np.array([one.top_k for one in params], np.int32),
        "min_p": np.array([one.min_p for one in params], np.float32),
        "seeds": np.array([one.seed for one in params], np.uint64),
        "num_generated": np.full(len(params), num_generated, np.int32),
    }
    tokens = [np.array(ids, np.int32) for ids in (prompt, output, banned)]
    special = [SpecialRow(i, one, *tokens) for i, one in enumerate(params) if one.is_special]
    return StepBatch(**columns, special=tuple(special), masks=None if masks is None else lambda: masks)
