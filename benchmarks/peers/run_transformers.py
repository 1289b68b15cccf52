"""transformers' `generate` in static batches of neighbours by length, padded on the left."""

from typing import Any

import torch
from job import Answer, run
from transformers import AutoModelForCausalLM

BATCH = 16


def load(job: dict[str, Any]) -> Any:
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model_dir"], dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], max_tokens: int) -> Answer:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: Answer = [[] for _ in prompts]
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            width = max(len(prompts[i]) for i in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(rows):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            output = model.generate(
                ids, attention_mask=mask, do_sample=False, eos_token_id=None, pad_token_id=0,
                min_new_tokens=max_tokens, max_new_tokens=max_tokens,
            )  # fmt: skip
            for row, i in enumerate(rows):
                answers[i] = output[row, width:].tolist()
        return answers

    return generate


run(load)
