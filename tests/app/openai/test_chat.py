"""Every field of contract 10.1: honoured, ignored, or a 400 that says why."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from openai.types.chat import ChatCompletion

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.chat import chat_body, parse_chat
from engine.request import Completion, FinishReason, TokenLogprob
from tests.fakes import ByteTokenizer

CONTEXT = TranslationContext(ByteTokenizer(), max_context=200)
HELLO = [{"role": "user", "content": "Hello"}]
PROMPT = "<user>Hello<assistant>"


def parse(body: dict[str, Any], context: TranslationContext = CONTEXT) -> Translated | BodyError:
    return parse_chat({"model": "m", "messages": HELLO} | body, context, seed_key="batch_1:a")


def accepted(body: dict[str, Any], context: TranslationContext = CONTEXT) -> Translated:
    translated = parse(body, context)
    assert isinstance(translated, Translated), translated
    return translated


def prompt_text(translated: Translated) -> str:
    (prompt_ids,) = translated.prompts
    return ByteTokenizer().decode(prompt_ids)


def test_defaults() -> None:
    translated = accepted({})
    assert translated.model == "m"
    assert prompt_text(translated) == PROMPT
    sampling = translated.sampling
    assert sampling.max_tokens == 200 - len(PROMPT)
    assert (sampling.temperature, sampling.top_p, sampling.stop, sampling.ignore_eos) == (1.0, 1.0, (), False)


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"max_completion_tokens": 8}, "max_tokens", 8),
        ({"max_completion_tokens": 8, "max_tokens": 8}, "max_tokens", 8),
        ({"max_completion_tokens": 8, "max_tokens": None}, "max_tokens", 8),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 2}, "temperature", 2.0),
        ({"temperature": None}, "temperature", 1.0),
        ({"top_p": 0.25}, "top_p", 0.25),
        ({"seed": -5}, "seed", 2**64 - 5),  # the engine's seeds are unsigned
        ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
        ({"stop": "\n"}, "stop", ("\n",)),
        ({"stop": ["a", "b", "c", "d"]}, "stop", ("a", "b", "c", "d")),
        ({"stop": None}, "stop", ()),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 0.5}, "presence_penalty", 0.5),
        ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"logit_bias": {"5": 100, "0": -0.5}}, "logit_bias", ((5, 100.0), (0, -0.5))),
        ({"top_k": 5}, "top_k", 5),
        ({"top_k": -1}, "top_k", 0),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"logprobs": True}, "top_logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "top_logprobs", 20),
        ({"logprobs": False}, "top_logprobs", None),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"stop_token_ids": [1, 255]}, "stop_token_ids", (1, 255)),
    ],
)
def test_honoured(body: dict[str, Any], field: str, value: object) -> None:
    assert getattr(accepted(body).sampling, field) == value


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"prompt_cache_retention": "24h"},
        {"prompt_cache_options": {"a": 1}},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "flex"},
        {"parallel_tool_calls": False},
        # Known, not honoured, but asking for nothing.
        {"n": 1},
        {"stream": False},
        {"stream_options": None},
        {"frequency_penalty": 0},
        {"presence_penalty": 0.0},
        {"logit_bias": {}},
        {"logprobs": False},
        {"top_logprobs": None},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tools": None},
        {"tool_choice": "none"},
        {"functions": None},
        {"reasoning_effort": "none"},
        {"modalities": ["text"]},
        {"audio": None},
        {"verbosity": None},
        {"top_k": -1},
        {"repetition_penalty": 1},
        {"chat_template_kwargs": {}},
    ],
)
def test_changes_nothing(body: dict[str, Any]) -> None:
    plain, given = accepted({}), accepted(body)
    assert given.sampling == plain.sampling
    assert np.array_equal(given.prompts[0], plain.prompts[0])
    assert (given.num_samples, given.num_choices, given.has_logprobs) == (1, 1, False)


@pytest.mark.parametrize(
    "body",
    [
        {"stream": True},
        {"stream_options": {"include_usage": True}},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"reasoning_effort": "high"},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "v"}},
        {"web_search_options": {}},
        {"prediction": {"type": "content"}},
        {"moderation": True},
        {"verbosity": "low"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"guided_whitespace_pattern": " "},
    ],
)
def test_unsupported(body: dict[str, Any]) -> None:
    error = parse(body)
    assert isinstance(error, BodyError)
    name = next(iter(body))
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert error.type == "invalid_request_error"
    assert f"'{name}'" in error.message


MESSAGE = "messages[0]"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"frobnicate": 1}, "unknown_parameter", "frobnicate"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 3}, "invalid_type", "model"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": ["hi"]}, "invalid_type", MESSAGE),
        ({"messages": [{"content": "hi"}]}, "missing_required_parameter", f"{MESSAGE}.role"),
        ({"messages": [{"role": "boss", "content": "hi"}]}, "invalid_value", f"{MESSAGE}.role"),
        ({"messages": [{"role": "function", "content": "hi"}]}, "unsupported_value", f"{MESSAGE}.role"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "invalid_type", f"{MESSAGE}.role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", f"{MESSAGE}.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", f"{MESSAGE}.content"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "unknown_parameter", f"{MESSAGE}.x"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
            "unsupported_parameter",
            f"{MESSAGE}.tool_calls",
        ),
        (
            {"messages": [*HELLO, {"role": "tool", "content": "a"}]},
            "missing_required_parameter",
            "messages[1].tool_call_id",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 4}]}]},
            "invalid_type",
            f"{MESSAGE}.content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "unsupported_value",
            f"{MESSAGE}.content[0].type",
        ),
        (
            {"messages": [{"role": "tool", "content": "a", "tool_call_id": "c"}]},
            "invalid_value",
            "messages",
        ),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_tokens"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": -0.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 1.1}, "invalid_value", "top_p"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"seed": "x"}, "invalid_type", "seed"),
        ({"stop": []}, "invalid_value", "stop"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"stop": ["a", 1]}, "invalid_type", "stop[1]"),
        ({"stop": 1}, "invalid_type", "stop"),
        ({"ignore_eos": 1}, "invalid_type", "ignore_eos"),
        ({"frequency_penalty": -2.1}, "invalid_value", "frequency_penalty"),
        ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
        ({"repetition_penalty": "1"}, "invalid_type", "repetition_penalty"),
        ({"logit_bias": [5]}, "invalid_type", "logit_bias"),
        ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias.5"),
        ({"logit_bias": {"5": None}}, "invalid_type", "logit_bias.5"),
        ({"logit_bias": {"256": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"9" * 5_000: 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"05": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"five": 1}}, "invalid_value", "logit_bias"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"top_k": 2**31}, "invalid_value", "top_k"),
        ({"min_p": 1.5}, "invalid_value", "min_p"),
        ({"min_tokens": -1}, "invalid_value", "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "invalid_value", "min_tokens"),
        ({"stop_token_ids": 5}, "invalid_type", "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "invalid_type", "stop_token_ids[0]"),
        ({"stop_token_ids": [1, 256]}, "invalid_value", "stop_token_ids[1]"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": "2"}, "invalid_type", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"logprobs": 1}, "invalid_type", "logprobs"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 0, "logprobs": False}, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "invalid_value", "top_logprobs"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
        ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"max_tokens": 179}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, "context_length_exceeded", "messages"),
    ],
)
def test_body_errors(body: dict[str, Any], code: str, param: str) -> None:
    error = parse(body)
    assert isinstance(error, BodyError)
    assert (error.status, error.code, error.param) == (400, code, param)
    assert error.as_body()["error"]["message"]


def test_messages_as_openai_words_them() -> None:
    def message(body: dict[str, Any]) -> str:
        error = parse(body)
        assert isinstance(error, BodyError)
        return error.message

    assert message({"temperature": "hot"}) == (
        "Invalid type for 'temperature': expected a decimal number, but got a string instead."
    )
    assert message({"temperature": 9}) == (
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 9 instead."
    )
    assert message({"frobnicate": 1}) == "Unknown parameter: 'frobnicate'."
    assert message({"max_tokens": 179}) == (
        "This model's maximum context length here is 200 tokens. However, you requested 201 tokens "
        "(22 in the messages, 179 in the completion). Please reduce the length of the messages or completion."
    )


def test_all_roles_and_text_parts_reach_the_template() -> None:
    translated = accepted(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b", "tool_calls": None},
                {"role": "tool", "content": "c", "tool_call_id": "call_1"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "d"}, {"type": "text", "text": "e"}],
                },
            ]
        }
    )
    assert prompt_text(translated) == "<system>Be brief.<user>a<assistant>b<tool>c<user>d\ne<assistant>"


def test_default_output_bound_is_the_settings() -> None:
    bounded = TranslationContext(ByteTokenizer(), max_context=200, default_max_tokens=10)
    assert accepted({}, bounded).sampling.max_tokens == 10
    assert accepted({"max_tokens": 50}, bounded).sampling.max_tokens == 50


def test_a_seed_of_its_own_stays_the_same_and_differs_by_request() -> None:
    def seed(key: str) -> int:
        translated = parse_chat({"model": "m", "messages": HELLO}, CONTEXT, seed_key=key)
        assert isinstance(translated, Translated)
        return translated.sampling.seed

    assert seed("batch_1:a") == seed("batch_1:a")
    assert seed("batch_1:a") != seed("batch_1:b")
    assert 0 <= seed("batch_1:a") < 2**63


def test_choices_are_requests_with_seeds_of_their_own() -> None:
    translated = accepted({"n": 3, "seed": 2**63 - 1, "logprobs": True})
    requests = translated.requests([7, 8, 9])
    assert [request.request_id for request in requests] == [7, 8, 9]
    assert all(request.prompt_ids is translated.prompts[0] for request in requests)
    seeds = [request.sampling.seed for request in requests]
    assert seeds[0] == accepted({"seed": 2**63 - 1}).requests([7])[0].sampling.seed
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert {replace(request.sampling, seed=0) for request in requests} == {
        replace(translated.sampling, seed=0)
    }


def completion(text: str, num_cached: int = 4, **changes: Any) -> Completion:
    ids = np.arange(len(text), dtype=np.int32)
    return replace(Completion(7, ids, text, FinishReason.LENGTH, 22, num_cached), **changes)


def test_response_body_is_what_the_sdk_reads() -> None:
    body = chat_body(accepted({}), [completion("Hi")], response_id="1", created=9, fingerprint="fp_1")
    assert " ".join(body) == "id object created model choices usage service_tier system_fingerprint"
    assert " ".join(body["choices"][0]) == "index message logprobs finish_reason"
    assert " ".join(body["choices"][0]["message"]) == "role content refusal annotations"
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert parsed.choices[0].message.content == "Hi"
    assert parsed.choices[0].finish_reason == "length"
    assert parsed.choices[0].logprobs is None
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 24
    assert parsed.usage.prompt_tokens_details is not None
    assert parsed.usage.prompt_tokens_details.cached_tokens == 4


def test_usage_counts_the_prompt_once() -> None:
    """Of the cached tokens those that siblings computed for each other are none."""
    completions = [completion("Hi", num_cached=21), completion("Hey", num_cached=4)]
    body = chat_body(accepted({"n": 2}), completions, response_id="1", created=9, fingerprint="fp_1")
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert [(one.index, one.message.content) for one in parsed.choices] == [(0, "Hi"), (1, "Hey")]
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (22, 5)
    assert parsed.usage.prompt_tokens_details is not None
    assert parsed.usage.prompt_tokens_details.cached_tokens == 4


def test_logprobs_are_what_the_sdk_reads() -> None:
    tokens = (
        TokenLogprob(b"Hi", -0.5, ((b"Hi", -0.5), (b"\xe2\x82", -1.0)), 0),
        TokenLogprob(b"!", -math.inf, (), 2),
    )
    asked = accepted({"logprobs": True, "top_logprobs": 2})
    answer = completion("Hi!", logprobs=tokens)
    body = chat_body(asked, [answer], response_id="1", created=9, fingerprint="fp_1")
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert parsed.choices[0].logprobs is not None
    assert parsed.choices[0].logprobs.content is not None
    first, second = parsed.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Hi", -0.5, [72, 105])
    assert [top.bytes for top in first.top_logprobs] == [[72, 105], [0xE2, 0x82]]
    assert first.top_logprobs[1].token == "\ufffd"
    assert (second.logprob, second.top_logprobs) == (-9999.0, [])
