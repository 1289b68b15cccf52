"""What `--quantize int8` costs in answers: perplexity on real text, and greedy tokens that stay.

    python -m benchmarks.bench_int8 --threads 2

Perplexity: the model's own, on the texts of `logiqa` and `spider_sql`, each text alone, at most --tokens
tokens of it. Greedy: the first --prompts prompts of `spider_sql` through the chat template, --output
tokens each by our engine, once in fp32 and once in int8.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.workloads import make, read_evals
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution.model import load_model
from engine.execution.resolve import resolve_model
from engine.request import Request, SamplingParams
from engine.text.tokenizer import Tokenizer

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODES = (None, "int8")


def texts_of(member: str, count: int) -> list[str]:
    """Different texts of an evals file: its users' messages, from all over the file."""
    rows = [row["input"] for row in read_evals(member)]
    texts = list(dict.fromkeys("\n".join(message["content"] for message in row) for row in rows))
    return texts[:: max(len(texts) // count, 1)][:count]


@torch.inference_mode()
def surprise(model: PreTrainedModel, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token but the first: -log p (nats), and the likeliest token in its place. Eager attention."""
    logits = model(input_ids=token_ids[None], use_cache=False).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, token_ids[1:], reduction="none")
    return nats, logits.argmax(dim=-1)


def perplexities(model_dir: Path, texts: list[str], num_tokens: int) -> dict[str, float]:
    tokenizer = Tokenizer(model_dir)
    encoded = [torch.tensor(tokenizer.encode(text)[:num_tokens], dtype=torch.int64) for text in texts]
    found = {}
    for mode in MODES:
        model = load_model(model_dir, torch.device("cpu"), torch.float32, quantize=mode).model
        model.set_attn_implementation("eager")
        results = [surprise(model, token_ids) for token_ids in encoded]
        found[mode] = [torch.cat(column) for column in zip(*results, strict=True)]
    (nats, likeliest), (nats_int8, likeliest_int8) = found[None], found["int8"]
    return {
        "tokens": len(nats),
        "perplexity_fp32": math.exp(nats.mean()),
        "perplexity_int8": math.exp(nats_int8.mean()),
        "loss": math.exp((nats_int8 - nats).mean()) - 1,
        "same_likeliest": float((likeliest == likeliest_int8).float().mean()),
    }


def greedy(
    model_dir: Path, mode: str | None, prompts: list[Any], num_tokens: int, threads: int
) -> list[list[int]]:
    engine = build_engine(EngineConfig(str(model_dir), num_threads=threads, quantize=mode))
    assert isinstance(engine, Engine)
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    engine.add([Request(i, np.asarray(ids, np.int32), sampling) for i, ids in enumerate(prompts)])
    answers: dict[int, list[int]] = {}
    while engine.has_work:
        answers |= {done.request_id: list(map(int, done.output_ids)) for done in engine.step()}
    return [answers[i] for i in range(len(prompts))]


def agreement(expected: list[list[int]], found: list[list[int]]) -> dict[str, float]:
    """equal: share of tokens equal in their place; before_first: median number of tokens before the first
    difference, all of them where there is none; whole: share of answers without one."""
    pairs = list(zip(expected, found, strict=True))
    same = [[a == b for a, b in zip(*pair, strict=True)] for pair in pairs]
    first = [row.index(False) if False in row else len(row) for row in same]
    return {
        "answers": len(pairs),
        "equal": float(np.mean([np.mean(row) for row in same])),
        "before_first": float(np.median(first)),
        "whole": float(np.mean([all(row) for row in same])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=40, help="of each file")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model_dir = resolve_model(args.model)
    figures: dict[str, Any] = {}
    for member in ("logiqa/logiqa.jsonl", "sql/spider_sql.jsonl"):
        figures[member] = perplexities(model_dir, texts_of(member, args.texts), args.tokens)
        print(member, json.dumps(figures[member]), flush=True)
    tokenizer = Tokenizer(model_dir)
    lines = make("spider_sql", seed=0, model="any")[: args.prompts]
    prompts = [tokenizer.render_chat(line["body"]["messages"]) for line in lines]
    answers = [greedy(model_dir, mode, prompts, args.output, args.threads) for mode in MODES]
    figures["greedy"] = agreement(*answers)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
