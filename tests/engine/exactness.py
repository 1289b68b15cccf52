"""Greedy output of our engine beside that of transformers' own `generate`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.build import build_engine
from engine.config import EngineConfig
from engine.request import Request, SamplingParams
from engine.stats import EngineStats

Prompt = NDArray[np.int32]


def generate_alone(model_dir: Path, prompts: Sequence[Prompt], num_tokens: int) -> list[list[int]]:
    """Each prompt alone through `generate`, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    outputs: dict[bytes, list[int]] = {}
    for prompt in prompts:
        if prompt.tobytes() not in outputs:
            ids = torch.from_numpy(prompt.astype(np.int64))[None]
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
            )
            outputs[prompt.tobytes()] = whole[0, ids.shape[1] :].tolist()
    return [outputs[prompt.tobytes()] for prompt in prompts]


def run_together(
    config: EngineConfig, prompts: Sequence[Prompt], num_tokens: int
) -> tuple[list[list[int]], EngineStats]:
    """All prompts in one engine."""
    engine = build_engine(config)
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0)
    refused = engine.add([Request(index, prompt, sampling) for index, prompt in enumerate(prompts)])
    assert not refused
    outputs: dict[int, list[int]] = {}
    while engine.has_work:
        for completion in engine.step():
            assert completion.request_id not in outputs
            outputs[completion.request_id] = completion.output_ids.tolist()
    return [outputs[index] for index in range(len(prompts))], engine.stats


def assert_same_but_for_ties(
    model_dir: Path, prompts: Sequence[Prompt], ours: list[list[int]], theirs: list[list[int]]
) -> None:
    """Each output is the same, or the first tokens that differ are as likely as each other."""
    different = [index for index in range(len(prompts)) if ours[index] != theirs[index]]
    for index in different:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        assert _is_near_tie(model, prompts[index], ours[index], theirs[index]), (
            f"prompt {index}: {ours[index]} is not {theirs[index]}"
        )


def _is_near_tie(model: PreTrainedModel, prompt: Prompt, ours: list[int], theirs: list[int]) -> bool:
    """Whether the first tokens that differ have float64 logits closer than fp32 rounding moved them."""
    first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    ids = torch.from_numpy(np.concatenate([prompt, ours[:first]]).astype(np.int64))[None]
    with torch.inference_mode():
        rounded = model.float()(ids).logits[0, -1]
        exact = model.double()(ids).logits[0, -1]
    noise = (rounded.double() - exact).abs().max()
    return bool((exact[ours[first]] - exact[theirs[first]]).abs() <= 2 * noise)
