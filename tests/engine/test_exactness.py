"""Greedy output equals transformers' `generate`, token for token, in fp32: a real model, real prompts."""

import random

import numpy as np
import pytest

from benchmarks.workloads import make
from engine.build import build_engine
from engine.config import EngineConfig
from engine.request import Request, SamplingParams
from engine.text.tokenizer import Tokenizer
from tests.engine.exactness import assert_same_but_for_ties, generate_alone, run_together

NUM_OUTPUT_TOKENS = 48
KV_BYTES_PER_TOKEN = 46_080


@pytest.fixture(scope="module")
def prompts(smollm2_dir) -> list[np.ndarray]:
    """72 chat prompts on a few schemas, 4 duplicates, and one that is a prefix of another."""
    tokenizer = Tokenizer(smollm2_dir)
    lines = sorted(
        make("spider_sql", seed=0, model="any"), key=lambda line: line["body"]["messages"][0]["content"]
    )
    rendered = [tokenizer.render_chat(line["body"]["messages"]) for line in lines[:72]]
    chosen = [*rendered, *rendered[:4], rendered[10][:-20]]
    random.Random(1).shuffle(chosen)
    return chosen


@pytest.fixture(scope="module")
def expected(smollm2_dir, prompts) -> list[list[int]]:
    return generate_alone(smollm2_dir, prompts, NUM_OUTPUT_TOKENS)


@pytest.mark.long
@pytest.mark.parametrize(("kv_tokens", "preempts"), [(40_000, False), (1_200, True)], ids=["ample", "scarce"])
def test_every_prompt_gets_the_tokens_of_generate(
    smollm2_dir, prompts, expected, monkeypatch, kv_tokens, preempts
):
    if preempts:  # outputs believed to be short: too many sequences are admitted
        monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 4)
    config = EngineConfig(
        str(smollm2_dir), kv_memory_bytes=kv_tokens * KV_BYTES_PER_TOKEN, max_batch_tokens=512
    )
    outputs, stats = run_together(config, prompts, NUM_OUTPUT_TOKENS)
    assert (stats.preemptions > 0) == preempts
    assert_same_but_for_ties(smollm2_dir, prompts, outputs, expected)


@pytest.mark.long
def test_sharing_reaches_the_bound_on_a_real_file(smollm2_dir):
    """Computed prompt tokens are the unique tokens of the prefix tree, up to folded short segments."""
    tokenizer = Tokenizer(smollm2_dir)
    lines = make("spider_sql", seed=3, model="any")
    rendered = [tokenizer.render_chat(line["body"]["messages"]) for line in lines]
    unique = len({prompt[: i + 1].tobytes() for prompt in rendered for i in range(len(prompt))})
    engine = build_engine(EngineConfig(str(smollm2_dir), kv_memory_bytes=40_000 * KV_BYTES_PER_TOKEN))
    engine.add(
        [Request(i, ids, SamplingParams(max_tokens=1, temperature=0)) for i, ids in enumerate(rendered)]
    )
    while engine.has_work:
        engine.step()
    computed = engine.stats.computed_prompt_tokens
    print(f"unique {unique}, computed {computed}, all {engine.stats.prompt_tokens}")
    assert unique <= computed <= 1.05 * unique
