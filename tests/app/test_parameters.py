"""Every sampling field of the contract on a small model: honoured, ignored, or a 400 line.

A body goes the way a line goes: parsed, run by the engine, put into a response body.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from app.openai.body import BodyError, TranslationContext
from app.openai.endpoints import ENDPOINTS
from engine.engine import Engine
from tests.engine.runs import run, tiny_engine

Body = dict[str, Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PLAIN: dict[str, Body] = {
    CHAT: {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    COMPLETIONS: {"prompt": "The quick brown fox"},
}
COMMON: Body = {"model": "m", "max_tokens": 24, "seed": 7, "ignore_eos": True}
END_TOKEN = 2


@dataclass(frozen=True)
class Asker:
    """Bodies in, answers out; an answer is a response body, or the error of a 400 line."""

    engine: Engine
    endpoint: str

    def __call__(self, body: Body) -> Body:
        endpoint = ENDPOINTS[self.endpoint]
        context = TranslationContext(self.engine.tokenizer, self.engine.max_context)
        asked = endpoint.parse(COMMON | PLAIN[self.endpoint] | body, context, seed_key="batch_1:a")
        if isinstance(asked, BodyError):
            assert asked.status == 400
            return asked.as_body()
        done = run(self.engine, asked.requests(range(asked.num_requests)))
        completions = [done[number] for number in range(asked.num_requests)]
        return endpoint.respond(asked, completions, response_id="1", created=9, fingerprint="fp")

    def choices(self, body: Body) -> list[Body]:
        answer = self(body)
        assert "choices" in answer, answer
        return list(answer["choices"])

    def text(self, body: Body) -> str:
        choice = self.choices(body)[0]
        return str(choice["text"] if self.endpoint == COMPLETIONS else choice["message"]["content"])

    def texts(self, body: Body, seeds: int = 12) -> set[str]:
        return {self.text(body | {"seed": seed}) for seed in range(seeds)}

    def num_tokens(self, body: Body) -> int:
        return int(self(body)["usage"]["completion_tokens"])

    def tokens(self, body: Body) -> list[str]:
        """The spelling of the tokens put out."""
        logprobs = self.choices(body | {"logprobs": True if self.endpoint == CHAT else 0})[0]["logprobs"]
        if self.endpoint == COMPLETIONS:
            return list(logprobs["tokens"])
        return [token["token"] for token in logprobs["content"]]


@pytest.fixture(scope="module")
def engine(tiny_llama_dir) -> Engine:
    return tiny_engine(tiny_llama_dir, kv_tokens=8_000, max_batch_tokens=256)


@pytest.fixture(scope="module", params=[CHAT, COMPLETIONS])
def ask(engine, request) -> Asker:
    return Asker(engine, request.param)


def _temperature(ask: Asker) -> None:
    assert len(ask.texts({"temperature": 0})) == 1
    assert len(ask.texts({"temperature": 1})) > 6
    assert ask.texts({}) == ask.texts({"temperature": 1})


def _top_p(ask: Asker) -> None:
    assert ask.texts({"top_p": 0}) == ask.texts({"temperature": 0})
    assert ask.text({"top_p": 0.5}) != ask.text({})


def _top_k(ask: Asker) -> None:
    assert ask.texts({"top_k": 1}) == ask.texts({"temperature": 0})
    assert ask.text({"top_k": 2}) != ask.text({})
    assert ask.text({"top_k": -1}) == ask.text({})


def _min_p(ask: Asker) -> None:
    assert ask.texts({"min_p": 1}) == ask.texts({"temperature": 0})
    assert ask.text({"min_p": 0.3}) != ask.text({})


def _seed(ask: Asker) -> None:
    assert ask.text({"seed": 1}) == ask.text({"seed": 1}) != ask.text({"seed": 2})


def _num_repeats(tokens: list[str]) -> int:
    return len(tokens) - len(set(tokens))


def _penalty(**penalty: float) -> Callable[[Asker], None]:
    def check(ask: Asker) -> None:
        greedy = {"temperature": 0, "max_tokens": 60}
        assert _num_repeats(ask.tokens(greedy | penalty)) < _num_repeats(ask.tokens(greedy))

    return check


def _logit_bias(ask: Asker) -> None:
    assert set(ask.tokens({"logit_bias": {"40": 100}})) == set(
        ask.tokens({"top_k": 1, "logit_bias": {"40": 100}})
    )
    assert len(set(ask.tokens({"logit_bias": {"40": 100}}))) == 1
    free = ask.tokens({"temperature": 0})
    assert ask.tokens({"temperature": 0, "logit_bias": {str(id_): -100 for id_ in range(319)}}) != free


def _stop(ask: Asker) -> None:
    text = ask.text({"temperature": 0})
    stop = text[4:6]
    choice = ask.choices({"temperature": 0, "stop": [stop, "never there"]})[0]
    assert ask.text({"temperature": 0, "stop": stop}) == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def _end_now(ask: Asker) -> Body:
    return {"logit_bias": {str(END_TOKEN): 100}, "ignore_eos": False}


def _ignore_eos(ask: Asker) -> None:
    assert ask.num_tokens(_end_now(ask)) == 1
    assert ask.num_tokens(_end_now(ask) | {"ignore_eos": True}) == 24


def _min_tokens(ask: Asker) -> None:
    assert ask.num_tokens(_end_now(ask) | {"min_tokens": 10}) == 11


def _stop_token_ids(ask: Asker) -> None:
    always = {"logit_bias": {"40": 100}, "stop_token_ids": [5, 40]}
    assert ask.choices(always)[0]["finish_reason"] == "stop"
    assert (ask.num_tokens(always), ask.text(always)) == (1, "")


def _max_tokens(ask: Asker) -> None:
    assert ask.num_tokens({"max_tokens": 3}) == 3
    assert ask.choices({"max_tokens": 3})[0]["finish_reason"] == "length"


def _n(ask: Asker) -> None:
    alone, answer = ask({}), ask({"n": 4})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0] == alone["choices"][0]
    assert len({str(choice | {"index": 0}) for choice in answer["choices"]}) == 4
    assert answer["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 4 * 24


HONOURED: dict[str, Callable[[Asker], None]] = {
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "min_p": _min_p,
    "seed": _seed,
    "frequency_penalty": _penalty(frequency_penalty=2.0),
    "presence_penalty": _penalty(presence_penalty=2.0),
    "repetition_penalty": _penalty(repetition_penalty=1.5),
    "logit_bias": _logit_bias,
    "stop": _stop,
    "stop_token_ids": _stop_token_ids,
    "min_tokens": _min_tokens,
    "ignore_eos": _ignore_eos,
    "max_tokens": _max_tokens,
    "n": _n,
}


@pytest.mark.parametrize("field", HONOURED)
def test_an_honoured_field_does_what_the_contract_says(ask: Asker, field: str) -> None:
    HONOURED[field](ask)


def test_chat_logprobs(engine: Engine) -> None:
    ask = Asker(engine, CHAT)
    assert ask.choices({})[0]["logprobs"] is None
    assert all(
        not token["top_logprobs"] for token in ask.choices({"logprobs": True})[0]["logprobs"]["content"]
    )
    answer = ask.choices({"logprobs": True, "top_logprobs": 3, "temperature": 0})[0]
    tokens = answer["logprobs"]["content"]
    assert len(tokens) == 24
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # greedy: the likeliest
    shown = b"".join(bytes(token["bytes"]) for token in tokens)
    assert shown.decode(errors="replace") == answer["message"]["content"]
    assert ask.choices({})[0]["message"] == ask.choices({"logprobs": True})[0]["message"]


def test_chat_max_completion_tokens(engine: Engine) -> None:
    assert Asker(engine, CHAT).num_tokens({"max_tokens": None, "max_completion_tokens": 3}) == 3


def test_completion_logprobs_echo_best_of_and_prompt_forms(engine: Engine) -> None:
    ask = Asker(engine, COMPLETIONS)
    text = ask.text({})
    logprobs = ask.choices({"logprobs": 2})[0]["logprobs"]
    assert {len(column) for column in logprobs.values()} == {24}
    assert all(len(likely) in (2, 3) for likely in logprobs["top_logprobs"])
    assert logprobs["text_offset"][0] == 0
    assert ask.text({"echo": True}) == "The quick brown fox" + text
    ids = engine.tokenizer.encode("The quick brown fox").tolist()
    assert (
        ask.text({"prompt": ids})
        == ask.text({"prompt": [ids]})
        == ask.text({"prompt": ["The quick brown fox"]})
    )
    assert ask.text({"prompt": ids, "echo": True}) == "The quick brown fox" + text
    many = ask.choices({"prompt": ["The quick brown fox", "What is"], "n": 2, "temperature": 0})
    assert [choice["index"] for choice in many] == [0, 1, 2, 3]
    assert many[0]["text"] == many[1]["text"] != many[2]["text"] == many[3]["text"]
    samples = ask.choices({"n": 6, "logprobs": 0})
    means = [sum(one["logprobs"]["token_logprobs"]) / 24 for one in samples]
    best = ask({"best_of": 6})
    assert [one["text"] for one in best["choices"]] == [samples[means.index(max(means))]["text"]]
    assert best["usage"]["completion_tokens"] == 6 * 24


SCHEMA: Body = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
}
CLOSED = SCHEMA | {"additionalProperties": False}
NUMBER = re.compile(r'\{\s*"n"\s*:\s*\d+\s*\}')
GRAMMARS: list[tuple[Body, str]] = [
    ({"guided_json": CLOSED}, NUMBER.pattern),
    ({"guided_json": json.dumps(CLOSED)}, NUMBER.pattern),
    ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": "root ::= [0-9] [x-z]", "guided_decoding_backend": "xgrammar"}, "[0-9][x-z]"),
    ({"structured_outputs": {"json": CLOSED}}, NUMBER.pattern),
    ({"structured_outputs": {"regex": "[a-c]{3}", "json": None}}, "[a-c]{3}"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, "[xy]"),
]
RESPONSE_FORMATS: list[Body] = [
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": CLOSED, "strict": True}},
]


@pytest.mark.parametrize(("body", "pattern"), GRAMMARS)
def test_an_output_is_held_to_its_grammar(ask: Asker, body: Body, pattern: str) -> None:
    unbounded = {"ignore_eos": False, "max_tokens": 200}
    assert all(re.fullmatch(pattern, text) for text in ask.texts(unbounded | body, seeds=4))


@pytest.mark.parametrize("form", RESPONSE_FORMATS)
def test_a_chat_answers_in_its_response_format(engine: Engine, form: Body) -> None:
    ask = Asker(engine, CHAT)
    bracket = str(engine.tokenizer.encode("}")[0])  # weights are random: it would go on for long
    body = {"ignore_eos": False, "max_tokens": 300, "logit_bias": {bracket: 100}}
    choice = ask.choices(body | {"response_format": form})[0]
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["message"]["content"]), dict)
    if form["type"] == "json_schema":
        assert NUMBER.fullmatch(choice["message"]["content"])


def test_a_grammar_that_cannot_be_is_a_400_line(ask: Asker) -> None:
    error = ask({"ignore_eos": False, "guided_json": {"type": "integer", "minimum": 5, "maximum": 3}})[
        "error"
    ]
    assert (error["code"], error["param"]) == ("invalid_value", "guided_json")
    assert "minimum" in error["message"]


IGNORED_EVERYWHERE: Body = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "guided_decoding_backend": "outlines",
}
IGNORED_IN_CHAT: Body = {
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"a": 1},
    "service_tier": "flex",
    "stream_options": None,
    "verbosity": None,
}


@pytest.mark.parametrize("field", IGNORED_EVERYWHERE)
def test_an_ignored_field_changes_nothing(ask: Asker, field: str) -> None:
    assert ask({field: IGNORED_EVERYWHERE[field]}) == ask({})


@pytest.mark.parametrize("field", IGNORED_IN_CHAT)
def test_a_field_that_chat_ignores_changes_nothing(engine: Engine, field: str) -> None:
    ask = Asker(engine, CHAT)
    assert ask({field: IGNORED_IN_CHAT[field]}) == ask({})


REJECTED: dict[str, list[Body]] = {
    CHAT: [
        {"stream": True},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "v"}},
        {"web_search_options": {}},
        {"prediction": {"type": "content", "content": "x"}},
        {"moderation": {"model": "m"}},
        {"verbosity": "low"},
    ],
    COMPLETIONS: [{"stream": True}, {"suffix": "the end"}, {"echo": True, "logprobs": 1}],
}


@pytest.mark.parametrize(
    ("endpoint", "body"), [(url, body) for url, bodies in REJECTED.items() for body in bodies]
)
def test_a_rejected_field_is_a_400_line(engine: Engine, endpoint: str, body: Body) -> None:
    error = Asker(engine, endpoint)(body)["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", next(iter(body)))
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_an_unknown_field_is_a_400_line(ask: Asker) -> None:
    assert ask({"frobnicate": 1})["error"]["code"] == "unknown_parameter"
