"""Executes one step: rows in, next tokens out."""

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.interface import STEP_KWARG
from engine.execution.logprobs import row_logprobs
from engine.execution.sampler import sample
from engine.scheduling.batch import StepBatch, StepTokens
from engine.staging import to_device


class Runner:
    """A model, called once a step with all rows flattened into one sequence."""

    def __init__(self, model: torch.nn.Module, attention: AttentionBackend, device: torch.device) -> None:
        self._model = model
        self._attention = attention
        self._device = device

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepTokens:
        """The next token of each of the batch's sampled rows."""
        columns = (batch.token_ids, batch.positions, batch.sample_rows)
        token_ids, positions, sample_rows = to_device(columns, torch.int64, self._device)
        logits = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            logits_to_keep=sample_rows,
            use_cache=False,
            **{STEP_KWARG: self._attention.plan(batch)},
        ).logits[0]
        sampled = sample(logits, batch)
        return StepTokens(sampled, row_logprobs(logits, sampled, batch.special))
