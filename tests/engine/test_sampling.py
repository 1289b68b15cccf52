"""Sampling through the whole engine on a tiny model: against transformers, and the same wherever it runs."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from app.openai.body import Translated
from engine.build import build_engine
from engine.config import EngineConfig
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


def _exact_logprobs(model, prompt: np.ndarray, output: list[int]) -> np.ndarray:
    """[num_output_tokens, vocab]: log-softmax of the logits before each output token, by transformers."""
    ids = torch.from_numpy(np.concatenate([prompt, output]).astype(np.int64))[None]
    with torch.inference_mode():
        return torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1], -1).numpy()


def test_logprobs_are_those_of_transformers(tiny_llama_dir, model, monkeypatch):
    """Raw ones, whatever is done to the logits afterwards; in a crowd, with preemptions."""
    monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 2)
    engine = tiny_engine(tiny_llama_dir, kv_tokens=200)
    requests = [
        Request(one.request_id, one.prompt_ids, replace(one.sampling, top_logprobs=one.request_id % 4 + 1))
        for one in _requests()
    ]
    wanted = Request(NUM_REQUESTS + 1, PROMPT, SamplingParams(1, top_logprobs=0, logprobs_of=(9, 200, 4)))
    done = run(engine, [*requests, Request(NUM_REQUESTS, PROMPT, SamplingParams(max_tokens=5)), wanted])
    assert engine.stats.preemptions > 0
    (told,) = done[wanted.request_id].logprobs
    assert [token for token, _ in told.top] == [engine.tokenizer.token_bytes(id_) for id_ in (9, 200, 4)]
    (exact,) = _exact_logprobs(model, PROMPT, done[wanted.request_id].output_ids.tolist())
    assert [value for _, value in told.top] == pytest.approx(exact[[9, 200, 4]], abs=1e-4)
    assert done[NUM_REQUESTS].logprobs is None
    for request in requests:
        completion = done[request.request_id]
        output = completion.output_ids.tolist()
        exact = _exact_logprobs(model, request.prompt_ids, output)
        ended = completion.finish_reason is FinishReason.STOP
        assert len(completion.logprobs) == len(output) - ended
        for row, token_id, told in zip(exact, output, completion.logprobs, strict=False):
            assert told.logprob == pytest.approx(row[token_id], abs=1e-4)
            num_top = request.sampling.top_logprobs
            assert [value for _, value in told.top] == pytest.approx(np.sort(row)[::-1][:num_top], abs=1e-4)
            assert told.top[0][0] == engine.tokenizer.token_bytes(int(row.argmax()))
        assert (
            b"".join(told.token for told in completion.logprobs)
            .decode(errors="replace")
            .startswith(completion.text[:1])
        )


@pytest.mark.long
def test_logprobs_of_the_real_model_are_those_of_transformers(smollm2_dir):
    config = EngineConfig(str(smollm2_dir), kv_memory_bytes=64 << 20)
    engine = build_engine(config)
    questions = ["What is the capital of France?", "Write a haiku about é and 😀.", "List five primes."]
    prompts = [engine.tokenizer.render_chat([{"role": "user", "content": text}]) for text in questions]
    requests = [
        Request(index, prompts[index % 3], SamplingParams(max_tokens=24, seed=index, top_logprobs=20))
        for index in range(12)
    ]
    done = run(engine, requests)
    in_fp32, exactly = (
        AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    # Rounding alone moves transformers' own fp32 logprobs of rare tokens by 1.2e-4.
    error, rounding = 0.0, 0.0
    for request in requests:
        output = done[request.request_id].output_ids.tolist()
        rows = [_exact_logprobs(model, request.prompt_ids, output) for model in (exactly, in_fp32)]
        told = done[request.request_id].logprobs
        assert len(told) == len(output) - (done[request.request_id].finish_reason is FinishReason.STOP)
        for exact, fp32, token_id, token in zip(*rows, output, told, strict=False):
            top = np.array([value for _, value in token.top])
            best = np.sort(exact)[::-1][:20]
            error = max(error, abs(token.logprob - exact[token_id]), np.abs(top - best).max())
            rounding = max(rounding, np.abs(np.sort(fp32)[::-1][:20] - best).max())
    assert error < max(1e-4, rounding)


def test_logprobs_end_where_the_text_does(answer):
    free = answer(top_logprobs=0)
    assert b"".join(token.token for token in free.logprobs).decode(errors="replace") == free.text
    # Not behind a broken character, of which nobody knows where it ends.
    start = next(i for i in range(4, 20) if free.text[i - 2 : i + 2].isascii())
    stop = free.text[start : start + 2]
    cut = answer(top_logprobs=0, stop=(stop,))
    shown = b"".join(token.token for token in cut.logprobs).decode(errors="replace")
    assert shown.startswith(cut.text)
    assert all(token.offset < len(cut.text) for token in cut.logprobs)
    assert len(cut.logprobs) < len(cut.output_ids)
    by_token = answer(top_logprobs=0, stop_token_ids=(int(free.output_ids[10]),))
    assert len(by_token.logprobs) == len(by_token.output_ids) - 1
    assert len(answer(top_logprobs=0, logit_bias=((2, 100.0),), ignore_eos=False).logprobs) == 0


def test_siblings_compute_their_prompt_once(tiny_llama_dir):
    """All but its last token, of which each samples for itself."""
    prompt = np.array([random.Random(2).randrange(3, 320) for _ in range(200)], np.int32)
    asked = Translated("m", (prompt,), SamplingParams(max_tokens=8, seed=4), num_samples=8, num_choices=8)
    engine = tiny_engine(tiny_llama_dir)
    done = run(engine, asked.requests(range(8)))
    assert engine.stats.prompt_tokens == 8 * 200
    assert engine.stats.computed_prompt_tokens == 199 + 8
    assert len({done[index].text for index in range(8)}) == 8
    assert sorted(done[index].num_cached_tokens for index in range(8))[0] == 0
    single = tiny_engine(tiny_llama_dir)
    assert run(single, replace(asked, num_samples=1, num_choices=1).requests([0]))[0].text == done[0].text
