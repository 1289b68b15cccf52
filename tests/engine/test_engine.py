"""The whole engine on a tiny model: the tokens of `generate`, whatever is shared, preempted or dropped."""

import random
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.build import build_engine, check_triton
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.request import Completion, FinishReason, Request, SamplingParams

KV_BYTES_PER_TOKEN = 3 * 2 * 2 * 8 * 4  # layers, K and V, KV heads, head dim, fp32
GREEDY = SamplingParams(max_tokens=30, temperature=0)


def _engine(model_dir, kv_tokens=4_000, max_batch_tokens=64, page_size=4) -> Engine:
    return build_engine(
        EngineConfig(
            str(model_dir),
            kv_memory_bytes=kv_tokens * KV_BYTES_PER_TOKEN,
            max_batch_tokens=max_batch_tokens,
            page_size=page_size,
        )
    )


def _prompts(seed: int) -> list[np.ndarray]:
    """A hierarchy three levels deep, duplicates, a prompt that is a prefix of another, and loners."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, 320) for _ in range(count)]

    prompts = []
    for _ in range(3):
        root = ids(rng.randint(20, 70))
        for _ in range(3):
            middle = root + ids(rng.randint(9, 30))
            prompts += [middle + ids(rng.randint(1, 20)) for _ in range(3)]
    prompts += [prompts[0], prompts[5], prompts[7][:-3], ids(1), ids(50)]
    rng.shuffle(prompts)
    return [np.array(prompt, np.int32) for prompt in prompts]


def _run(engine: Engine, requests: list[Request]) -> dict[int, Completion]:
    assert engine.add(requests) == []
    done: dict[int, Completion] = {}
    while engine.has_work:
        for completion in engine.step():
            assert completion.request_id not in done
            done[completion.request_id] = completion
    return done


def _generate(model_dir, prompts: list[np.ndarray]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    outputs = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=GREEDY.max_tokens, do_sample=False
        )
        outputs.append(whole[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize(
    ("kv_tokens", "max_batch_tokens", "preempts"), [(4_000, 512, False), (4_000, 16, False), (250, 64, True)]
)
def test_greedy_tokens_are_those_of_generate(
    tiny_llama_dir, monkeypatch, kv_tokens, max_batch_tokens, preempts
):
    if preempts:  # outputs believed to be short: too many sequences are admitted
        monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 4)
    prompts = _prompts(seed=1)
    engine = _engine(tiny_llama_dir, kv_tokens, max_batch_tokens)
    done = _run(engine, [Request(index, prompt, GREEDY) for index, prompt in enumerate(prompts)])
    assert [done[index].output_ids.tolist() for index in range(len(prompts))] == _generate(
        tiny_llama_dir, prompts
    )
    assert (engine.stats.preemptions > 0) == preempts


def test_a_prefix_is_computed_once(tiny_llama_dir):
    prompts = _prompts(seed=2)
    engine = _engine(tiny_llama_dir)
    _run(engine, [Request(index, prompt, GREEDY) for index, prompt in enumerate(prompts)])
    # Every request keeps a token of its own, so a token that is some prompt's last counts for each.
    shared = {prompt[: i + 1].tobytes() for prompt in prompts for i in range(len(prompt) - 1)}
    ends = {prompt.tobytes() for prompt in prompts} - shared
    unique = len(shared) + len(ends)
    assert unique <= engine.stats.computed_prompt_tokens <= 1.1 * unique
    assert engine.stats.computed_prompt_tokens < 0.5 * engine.stats.prompt_tokens


def test_sampled_text_depends_on_nothing_but_the_request(tiny_llama_dir):
    prompts = _prompts(seed=3)
    requests = [
        Request(index, prompt, SamplingParams(max_tokens=10, temperature=0.8, top_p=0.9, seed=index))
        for index, prompt in enumerate(prompts)
    ]
    crowd = _run(_engine(tiny_llama_dir), requests)
    scarce = _run(_engine(tiny_llama_dir, kv_tokens=300), requests[::-1])
    for request in requests[:6]:
        alone = _run(_engine(tiny_llama_dir), [request])
        assert crowd[request.request_id].text == alone[request.request_id].text
    assert {index: done.text for index, done in crowd.items()} == {
        index: done.text for index, done in scarce.items()
    }


def test_a_stop_string_ends_the_text_before_it(tiny_llama_dir):
    prompt = _prompts(seed=4)[0]
    free = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    text = _run(_engine(tiny_llama_dir), [Request(0, prompt, free)])[0].text
    stop = text[5:8]
    stopping = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, stop=("never there", stop))
    done = _run(_engine(tiny_llama_dir), [Request(0, prompt, stopping)])[0]
    assert done.text == text[: text.index(stop)]
    assert done.finish_reason is FinishReason.STOP
    assert len(done.output_ids) < 40


def test_a_stop_string_is_found_behind_an_open_character(tiny_llama_dir):
    prompt = np.array([5, 6, 7], np.int32)
    free = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    engine = _engine(tiny_llama_dir)
    ids = _run(engine, [Request(0, prompt, free)])[0].output_ids
    count = max(n for n in range(1, 61) if engine.tokenizer.decode(ids[:n]).endswith("\ufffd"))
    text = engine.tokenizer.decode(ids[:count])
    stopping = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, stop=(text,))
    done = _run(_engine(tiny_llama_dir), [Request(0, prompt, stopping)])[0]
    assert (done.text, done.finish_reason) == ("", FinishReason.STOP)


def test_work_leaves_and_joins_while_the_engine_runs(tiny_llama_dir):
    prompts = _prompts(seed=5)
    expected = _generate(tiny_llama_dir, prompts)
    engine = _engine(tiny_llama_dir, kv_tokens=600)
    engine.add([Request(index, prompt, GREEDY) for index, prompt in enumerate(prompts[:20])])
    done = {completion.request_id: completion for _ in range(3) for completion in engine.step()}
    dropped = {0, 3, 7, 11} - set(done)
    engine.drop({0, 3, 7, 11})
    engine.add([Request(index, prompts[index], GREEDY) for index in range(20, len(prompts))])
    while engine.has_work:
        done |= {completion.request_id: completion for completion in engine.step()}
    assert set(done) == set(range(len(prompts))) - dropped
    assert all(done[index].output_ids.tolist() == expected[index] for index in done)


@pytest.mark.parametrize("scopes", [("a", "a"), ("a", "b"), (None, None)])
def test_later_calls_share_with_what_is_there_in_their_scope(tiny_llama_dir, scopes):
    prefix = np.arange(3, 83, dtype=np.int32)
    prompts = [np.append(prefix, np.int32([100 + index, 7])) for index in range(6)]
    expected = _generate(tiny_llama_dir, prompts)
    engine = _engine(tiny_llama_dir)
    engine.add([Request(index, prompts[index], GREEDY) for index in range(2)], scope=scopes[0])
    done = {completion.request_id: completion for _ in range(2) for completion in engine.step()}
    assert not done
    engine.add([Request(index, prompts[index], GREEDY) for index in range(2, 4)], scope=scopes[1])
    engine.add([Request(4, prompts[4], GREEDY)], scope=scopes[1])
    engine.step()
    engine.add([Request(5, prompts[5], GREEDY)], scope=scopes[1])
    while engine.has_work:
        done |= {completion.request_id: completion for completion in engine.step()}
    assert [done[index].output_ids.tolist() for index in range(6)] == expected
    (prefix,) = engine.outline([Request(index, prompts[index], GREEDY) for index in range(3)]).prefixes
    assert (prefix.num_tokens, prefix.num_requests) == (80, 3)  # whatever was planned before
    shared = engine.stats.computed_prompt_tokens - 6 * 2
    assert shared == {("a", "a"): 80, ("a", "b"): 2 * 80, (None, None): 4 * 80}[scopes]
    assert engine._pool.num_used == 0


def test_what_can_never_fit_is_refused_and_the_rest_runs(tiny_llama_dir):
    long, short = Request(0, np.arange(3, 203, dtype=np.int32), GREEDY), Request(1, _prompts(6)[0], GREEDY)
    engine = _engine(tiny_llama_dir, kv_tokens=200)
    (refusal,) = engine.add([long, short])
    assert refusal.request_id == 0
    assert "KV pages" in refusal.reason
    while engine.has_work:
        assert all(completion.request_id == 1 for completion in engine.step())


@pytest.mark.parametrize(
    "change", [{"kv_memory_bytes": 10}, {"kv_memory_bytes": 1 << 55}, {"device": "cuda"}]
)
def test_settings_that_cannot_work_are_told(tiny_llama_dir, change):
    with pytest.raises(EngineConfigError):
        build_engine(EngineConfig(str(tiny_llama_dir), **change))


def test_a_gpu_without_triton_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    with pytest.raises(EngineConfigError, match=r"pip install 'batchllm\[gpu\]'"):
        check_triton()
