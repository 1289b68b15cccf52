"""What it costs to hold outputs to schemas: 200 requests over 20 schemas, and the same lengths without.

    python -m benchmarks.bench_structured --threads 2 --repeats 2

Runs take turns. A run without grammars generates for each request as many tokens as the run before it with
them. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from benchmarks.schemas import SCHEMAS, SUBJECTS, messages
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution.resolve import DEFAULT_MODEL, resolve_model
from engine.request import Completion, FinishReason, Grammar, GrammarKind, Request, SamplingParams
from engine.text.tokenizer import Tokenizer

MAX_TOKENS = 400


def requests(tokenizer: Tokenizer, temperature: float) -> list[Request]:
    """One for each schema and subject, in that order."""
    return [
        Request(
            index,
            tokenizer.render_chat(messages(name, subject)),
            SamplingParams(
                max_tokens=MAX_TOKENS,
                temperature=temperature,
                seed=index,
                grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMAS[name])),
            ),
        )
        for index, (name, subject) in enumerate((name, subject) for name in SCHEMAS for subject in SUBJECTS)
    ]


def run(engine: Engine, asked: Sequence[Request]) -> tuple[float, dict[int, Completion]]:
    """Seconds, compiling of the grammars included, and the completions by request."""
    started = time.perf_counter()
    for request in asked:
        if request.sampling.grammar is not None:
            engine.tokenizer.check_grammar(request.sampling.grammar)
    engine.add(asked)
    done = {}
    while engine.has_work:
        done.update({completion.request_id: completion for completion in engine.step()})
    return time.perf_counter() - started, done


def without_grammar(request: Request, completion: Completion) -> Request:
    sampling = replace(request.sampling, grammar=None, ignore_eos=True, max_tokens=len(completion.output_ids))
    return replace(request, sampling=sampling)


def count_valid(done: dict[int, Completion]) -> int:
    """Of the completions of `requests`, by a validator that is not the one that made them."""
    schemas = list(SCHEMAS.values())
    num_valid = 0
    for request_id, completion in done.items():
        validator = Draft202012Validator(
            schemas[request_id // len(SUBJECTS)], format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        try:
            num_valid += validator.is_valid(json.loads(completion.text))
        except ValueError:
            print("no JSON:", repr(completion.text[:200]), completion.finish_reason, flush=True)
    return num_valid


def main() -> None:
    parser = argparse.ArgumentParser(description="Structured outputs against free ones of the same lengths.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    model_dir = resolve_model(DEFAULT_MODEL)
    engine = build_engine(EngineConfig(str(model_dir), kv_memory_bytes=2 << 30, num_threads=args.threads))
    assert isinstance(engine, Engine)
    asked = requests(engine.tokenizer, args.temperature)
    run(engine, [replace(one, sampling=SamplingParams(max_tokens=2)) for one in asked[:20]])  # warm-up
    rounds = []
    for _ in range(args.repeats):
        engine.tokenizer.__dict__.pop("grammars", None)  # each round compiles anew
        seconds, done = run(engine, asked)
        free_seconds, free = run(engine, [without_grammar(one, done[one.request_id]) for one in asked])
        assert [len(done[i].output_ids) for i in done] == [len(free[i].output_ids) for i in done]
        rounds.append(
            {
                "seconds": round(seconds, 2),
                "free_seconds": round(free_seconds, 2),
                "ratio": round(seconds / free_seconds, 4),
                "valid": count_valid(done),
                "by_length": sum(one.finish_reason is FinishReason.LENGTH for one in done.values()),
                "failed": sum(one.failure is not None for one in done.values()),
                "output_tokens": int(np.sum([len(one.output_ids) for one in done.values()])),
            }
        )
        print(json.dumps(rounds[-1]), flush=True)
    summary: dict[str, Any] = {
        "requests": len(asked),
        "schemas": len(SCHEMAS),
        "threads": args.threads,
        "temperature": args.temperature,
        "ratio": statistics.median(one["ratio"] for one in rounds),
        "rounds": rounds,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
