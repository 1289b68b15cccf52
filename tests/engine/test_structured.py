"""Outputs held to grammars, through the whole engine on a tiny model with random weights."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from app.openai.body import Translated
from benchmarks import bench_structured
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import FinishReason, Grammar, GrammarKind, Request, SamplingParams
from tests.engine.runs import run, tiny_engine
from tests.models import save_tiny_model, tiny_config

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
DIGITS = Grammar(GrammarKind.REGEX, r"[0-9]{3,6}")
PROMPT = np.array([40, 90, 7, 201, 33, 90, 150], np.int32)
END = 2


def _sampling(grammar: Grammar | None = JSON, **fields) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 300, "grammar": grammar} | fields)


@pytest.fixture(scope="module")
def engine(tiny_llama_dir) -> Engine:
    return tiny_engine(tiny_llama_dir)


def _text(engine: Engine, sampling: SamplingParams) -> str:
    return run(engine, [Request(0, PROMPT, sampling)])[0].text


def _requests(count: int = 40) -> list[Request]:
    """Every other one with a grammar, greedy and sampled, the prompts of pairs alike."""
    kinds = [{"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 30}, {"frequency_penalty": 1.0}, {}]
    requests = []
    for index in range(count):
        prompt = np.concatenate((PROMPT, np.array([50 + index // 2], np.int32)))
        fields = {"seed": index, **kinds[index // 2 % len(kinds)]}
        sampling = _sampling(**fields) if index % 2 else _sampling(None, **fields | {"max_tokens": 30})
        requests.append(Request(index, prompt, sampling))
    return requests


def test_every_output_is_valid_and_others_are_what_they_were(engine, tiny_llama_dir) -> None:
    requests = _requests()
    done = run(engine, requests)
    free = [request for request in requests if request.sampling.grammar is None]
    without = run(tiny_engine(tiny_llama_dir), free)
    for request in requests:
        completion = done[request.request_id]
        if request.sampling.grammar is None:
            assert completion.text == without[request.request_id].text
            continue
        jsonschema.validate(json.loads(completion.text), SCHEMA)
        assert completion.finish_reason is FinishReason.STOP
        assert completion.output_ids[-1] == END
        assert not {0, 1, 2} & set(completion.output_ids[:-1].tolist())


def test_preempted_outputs_go_on_in_their_grammar(engine, tiny_llama_dir, monkeypatch) -> None:
    requests = _requests()
    done = run(engine, requests)
    monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 2)
    scarce = tiny_engine(tiny_llama_dir, kv_tokens=340)
    preempted = run(scarce, requests)
    assert scarce.stats.preemptions > 0
    assert {id_: one.text for id_, one in preempted.items()} == {id_: one.text for id_, one in done.items()}


def test_an_output_that_ends_too_early_has_the_length_as_its_reason(engine) -> None:
    whole = run(engine, [Request(0, PROMPT, _sampling())])[0]
    cut = run(engine, [Request(0, PROMPT, _sampling(max_tokens=5))])[0]
    assert cut.finish_reason is FinishReason.LENGTH
    assert cut.failure is None
    assert whole.text.startswith(cut.text.rstrip("\ufffd"))


def test_siblings_differ_and_are_all_valid(engine) -> None:
    asked = Translated("m", (PROMPT,), _sampling(DIGITS, seed=4), num_samples=8, num_choices=8)
    texts = [one.text for one in run(engine, asked.requests(range(8))).values()]
    assert len(set(texts)) > 4
    assert all(re.fullmatch(r"[0-9]{3,6}", text) for text in texts)


def test_a_stop_string_ends_it_before(engine) -> None:
    text = _text(engine, _sampling(stop=('"age"',)))
    assert '"name"' in text
    assert '"age"' not in text


def test_min_tokens_hold_where_the_grammar_can_go_on(engine) -> None:
    choice = Grammar(GrammarKind.REGEX, "a{1,200}")
    eager = {"logit_bias": ((END, 100.0),), "temperature": 0.0}
    assert _text(engine, _sampling(choice, **eager)) == "a"
    assert _text(engine, _sampling(choice, **eager, min_tokens=7)) == "a" * 7
    assert re.fullmatch(
        r"[0-9]{3,6}", _text(engine, _sampling(DIGITS, min_tokens=50))
    )  # all it can do is end


def test_logprobs_are_those_of_the_model(engine) -> None:
    done = run(engine, [Request(0, PROMPT, _sampling(DIGITS, top_logprobs=3))])[0]
    assert b"".join(token.token for token in done.logprobs) == done.text.encode()
    assert all(np.isfinite(token.logprob) for token in done.logprobs)
    assert any(token.token not in [top for top, _ in token.top] for token in done.logprobs)


def test_logits_without_a_token_are_never_taken(tmp_path) -> None:
    """The model's vocabulary is padded: 37 of its logits belong to no token."""
    padded = tiny_engine(save_tiny_model(tmp_path, tiny_config(vocab_size=357)))
    requests = [Request(index, PROMPT, _sampling(seed=index, temperature=2.0)) for index in range(8)]
    for completion in run(padded, requests).values():
        jsonschema.validate(json.loads(completion.text), SCHEMA)
        assert completion.output_ids.max() < 320


def test_an_output_that_can_neither_go_on_nor_end_says_so(engine) -> None:
    """A grammar may lead into a dead end that nobody sees beforehand."""
    dead = Grammar(GrammarKind.LARK, r'start: "a" /[^\s\S]/')
    free = Request(1, PROMPT, _sampling(None, max_tokens=5))
    done = run(engine, [Request(0, PROMPT, _sampling(dead)), free])
    assert done[0].failure
    assert done[1].failure is None


def test_an_id_that_comes_again_begins_anew(engine) -> None:
    engine.add([Request(0, PROMPT, _sampling())])
    for _ in range(4):
        engine.step()
    engine.drop([0])
    assert _text(engine, _sampling(DIGITS, seed=1)) == _text(engine, _sampling(DIGITS, seed=1))
    first = Request(0, PROMPT, _sampling(replace(DIGITS), seed=1))
    engine.add([first])
    engine.step()
    engine.drop([0])
    assert re.fullmatch(r"[0-9]{3,6}", run(engine, [first])[0].text)


def test_finished_outputs_are_forgotten(engine) -> None:
    run(engine, _requests(6))
    assert engine._masker._outputs == {}


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_200_outputs_of_the_real_model_are_valid(smollm2_dir: Path, temperature: float) -> None:
    """Over 20 schemas that bound what they ask for; none ends by its length."""
    engine = build_engine(EngineConfig(str(smollm2_dir), kv_memory_bytes=1 << 30))
    asked = bench_structured.requests(engine.tokenizer, temperature)
    _, done = bench_structured.run(engine, asked)
    assert len(done) == 200
    assert [one.text for one in done.values() if one.finish_reason is not FinishReason.STOP] == []
    assert bench_structured.count_valid(done) == 200
