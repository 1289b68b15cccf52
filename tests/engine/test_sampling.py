"""Sampling through the whole engine on a tiny model: against transformers, and the same wherever it runs."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.execution.sampler import sample
from engine.request import FinishReason, Request, SamplingParams
from tests.engine.execution.sampled_rows import sampled_rows
from tests.engine.runs import run, tiny_engine

PROMPT = np.array([40, 90, 7, 201, 33, 90, 150], np.int32)
NUM_REQUESTS = 100


@pytest.fixture(scope="module")
def model(tiny_llama_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)


@pytest.fixture(scope="module")
def answer(tiny_llama_dir):
    """The completion of PROMPT, greedy unless told otherwise."""
    engine = tiny_engine(tiny_llama_dir)

    def answer(**sampling):
        defaults = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
        return run(engine, [Request(0, PROMPT, SamplingParams(**defaults | sampling))])[0]

    return answer


def test_the_repetition_penalty_is_that_of_transformers(model, answer):
    ids = torch.from_numpy(PROMPT.astype(np.int64))[None]
    mask = torch.ones_like(ids)
    expected = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=1.4,
        eos_token_id=None,
    )
    ours = answer(repetition_penalty=1.4).output_ids.tolist()
    assert ours == expected[0, len(PROMPT) :].tolist()
    assert ours != answer().output_ids.tolist()


def test_a_strong_penalty_forbids_what_was_put_out(answer):
    free, penalised = answer().output_ids, answer(presence_penalty=2.0, frequency_penalty=2.0).output_ids
    assert len(set(penalised.tolist())) > len(set(free.tolist()))


def test_a_stop_token_ends_the_text_before_it(answer):
    free = answer()
    stop = int(free.output_ids[10])
    count = free.output_ids.tolist().index(stop) + 1
    done = answer(stop_token_ids=(stop, 5))
    assert done.finish_reason is FinishReason.STOP
    assert done.output_ids.tolist() == free.output_ids[:count].tolist()
    assert free.text.startswith(done.text)
    assert len(done.text) < len(answer(max_tokens=count).text)


def test_before_min_tokens_no_token_ends_the_output(model, answer):
    """The end token is biased to come at once, and waits; then it comes."""
    bias = ((2, 100.0),)
    assert len(answer(logit_bias=bias, ignore_eos=False).output_ids) == 1
    done = answer(logit_bias=bias, ignore_eos=False, min_tokens=6)
    assert done.output_ids.tolist()[-1] == 2
    assert len(done.output_ids) == 7
    assert len(answer(logit_bias=((9, 100.0),), stop_token_ids=(9,), min_tokens=6).output_ids) == 7


def test_before_min_tokens_no_stop_string_counts(answer):
    free = answer(max_tokens=30)
    early = answer(max_tokens=6).text
    stop = early[:1]
    done = answer(min_tokens=6, stop=(stop,))
    assert done.text.startswith(early)
    assert stop not in done.text[len(early) :]
    assert free.text.startswith(done.text)


def _requests() -> list[Request]:
    """Seeded requests at temperature 1 with shared prefixes, every third with edits or limits."""
    rng = random.Random(5)
    roots = [[rng.randrange(3, 320) for _ in range(rng.randint(20, 60))] for _ in range(8)]
    extras = [
        {"top_p": 0.9},
        {"top_k": 20},
        {"min_p": 0.02},
        {"frequency_penalty": 0.8, "presence_penalty": 0.3},
        {"repetition_penalty": 1.2},
        {"logit_bias": ((44, 4.0),), "min_tokens": 8},
    ]
    requests = []
    for index in range(NUM_REQUESTS):
        own = [rng.randrange(3, 320) for _ in range(rng.randint(1, 12))]
        extra = extras[index // 3 % len(extras)] if index % 3 == 0 else {}
        sampling = SamplingParams(max_tokens=16, temperature=1.0, seed=1_000 + index, **extra)
        requests.append(Request(index, np.array(rng.choice(roots) + own, np.int32), sampling))
    return requests


def _is_near_tie(model, request: Request, ours: list[int], theirs: list[int]) -> bool:
    """Whether rounding of the logits decides between the first tokens that differ.

    Draws again and again from float64 logits, each time moved by as much as fp32 moves them: both must come.
    """
    first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    ids = torch.from_numpy(np.concatenate([request.prompt_ids, ours[:first]]).astype(np.int64))[None]
    with torch.inference_mode():
        rounded = model.float()(ids).logits[0, -1]
        exact = model.double()(ids).logits[0, -1]
    model.float()
    noise = 4 * (rounded.double() - exact).abs().max()
    moves = 2 * torch.rand(500, len(exact), generator=torch.Generator().manual_seed(0)) - 1
    rows = sampled_rows([request.sampling] * len(moves), first, request.prompt_ids.tolist(), ours[:first])
    return {ours[first], theirs[first]} <= set(sample(exact + noise * moves, rows).tolist())


def test_a_seed_gives_the_same_text_wherever_it_runs(tiny_llama_dir, model, monkeypatch):
    """Alone, in two batches, preempted, and started over in a new engine."""
    requests = _requests()
    engine = tiny_engine(tiny_llama_dir)
    alone = {request.request_id: run(engine, [request])[request.request_id] for request in requests}
    runs = {"crowd": run(tiny_engine(tiny_llama_dir, max_batch_tokens=512), requests)}
    shuffled = random.Random(1).sample(requests, NUM_REQUESTS)
    runs["other order and steps"] = run(tiny_engine(tiny_llama_dir, max_batch_tokens=24), shuffled)
    killed = tiny_engine(tiny_llama_dir)
    killed.add(shuffled)
    done = [completion for _ in range(30) for completion in killed.step()]
    assert 0 < len(done) < NUM_REQUESTS
    left = {request.request_id for request in requests} - {completion.request_id for completion in done}
    again = run(tiny_engine(tiny_llama_dir), [request for request in requests if request.request_id in left])
    runs["restarted"] = again | {completion.request_id: completion for completion in done}
    monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 2)
    scarce = tiny_engine(tiny_llama_dir, kv_tokens=200)
    runs["preempted"] = run(scarce, requests)
    assert scarce.stats.preemptions > 0
    num_different = 0
    for name, run_ in runs.items():
        for request in requests:
            ours, theirs = (side[request.request_id].output_ids.tolist() for side in (alone, run_))
            if ours != theirs:
                num_different += 1
                assert _is_near_tie(model, request, ours, theirs), (name, request.request_id)
    print(f"{num_different} of {len(runs) * NUM_REQUESTS} texts differ, each at a near tie")
    assert len({tuple(one.output_ids.tolist()) for one in alone.values()}) > 90  # seeds do matter
