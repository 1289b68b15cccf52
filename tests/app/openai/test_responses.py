"""The text subset of /v1/responses: what is honoured, what is a 400, and an answer that the SDK takes."""

import json
from typing import Any

import numpy as np
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.responses import output_of, parse_response, response_body
from engine.request import Completion, FinishReason, Grammar, GrammarKind, TokenLogprob
from tests.fakes import ByteTokenizer

CONTEXT = TranslationContext(ByteTokenizer(), max_context=200)


def parse(body: dict[str, Any]) -> Translated | BodyError:
    return parse_response({"model": "m", "input": "Hello"} | body, CONTEXT, seed_key="batch_1:a")


def accepted(body: dict[str, Any]) -> Translated:
    translated = parse(body)
    assert isinstance(translated, Translated), translated
    return translated


def prompt_text(translated: Translated) -> str:
    (prompt_ids,) = translated.prompts
    return ByteTokenizer().decode(prompt_ids)


def part(text: str, kind: str = "input_text") -> dict[str, str]:
    return {"type": kind, "text": text}


def answer(body: dict[str, Any], text: str = "Hi", reason: FinishReason = FinishReason.STOP) -> Response:
    asked = accepted(body)
    logprobs = (TokenLogprob(b"Hi", -0.5, ((b"Hi", -0.5),), 0),) if asked.has_logprobs else None
    output_ids = np.arange(3, dtype=np.int32)
    completion = Completion(0, output_ids, text, reason, len(asked.prompts[0]), 2, logprobs)
    answered = response_body(asked, [completion], response_id="1", created=7, fingerprint="fp")
    return Response.model_validate(answered, strict=True)


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({}, "<user>Hello<assistant>"),
        ({"instructions": "Be brief."}, "<system>Be brief.<user>Hello<assistant>"),
        ({"input": [{"role": "user", "content": "Hello"}]}, "<user>Hello<assistant>"),
        (
            {
                "input": [
                    {"type": "message", "role": "developer", "content": [part("a"), part("b")]},
                    {"role": "user", "content": [part("c")]},
                    {  # an earlier answer as it was given
                        "type": "message",
                        "id": "msg_1",
                        "status": "completed",
                        "role": "assistant",
                        "content": [part("d", "output_text") | {"annotations": [], "logprobs": []}],
                    },
                    {"role": "user", "content": "e"},
                ]
            },
            "<system>a\nb<user>c<assistant>d<user>e<assistant>",
        ),
    ],
)
def test_prompts(body: dict[str, Any], prompt: str) -> None:
    assert prompt_text(accepted(body)) == prompt


def test_sampling() -> None:
    body = {"max_output_tokens": 16, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "top_logprobs": 2}
    sampling = accepted(body).sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (16, 0.5, 0.25, 3)
    assert sampling.top_logprobs == 2
    assert accepted({"top_logprobs": 0}).sampling.top_logprobs is None


@pytest.mark.parametrize(
    "body",
    [
        {
            "user": "u",
            "store": True,
            "metadata": {"a": "b"},
            "service_tier": "auto",
            "safety_identifier": "s",
        },
        {"truncation": "disabled", "stream": False, "background": False, "include": [], "conversation": None},
        {"text": {"format": {"type": "text"}}, "tools": [], "reasoning": {"effort": None}},
        {"parallel_tool_calls": True, "prompt_cache_key": "k"},
    ],
)
def test_what_changes_nothing(body: dict[str, Any]) -> None:
    plain, ignored = accepted({}), accepted(body)
    assert prompt_text(ignored) == prompt_text(plain)
    assert ignored.sampling == plain.sampling


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"stream": True}, "stream", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"max_tool_calls": 1}, "max_tool_calls", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "unsupported_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"text": []}, "text", "invalid_type"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"max_output_tokens": 15}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 1000}, "input", "context_length_exceeded"),
        ({"temperature": 9}, "temperature", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"metadata": "m"}, "metadata", "invalid_type"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": "x" * 300}, "input", "context_length_exceeded"),
        ({"input": ["a"]}, "input[0]", "invalid_type"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type", "unsupported_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content", "invalid_type"),
        ({"input": [{"role": "user", "content": "a", "x": 1}]}, "input[0].x", "unknown_parameter"),
        (
            {"instructions": "a", "input": [{"role": "judge", "content": "b"}]},
            "input[0].role",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [part("a"), {"type": "input_image"}]}]},
            "input[0].content[1].type",
            "unsupported_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "missing_required_parameter",
        ),
    ],
)
def test_what_is_refused(body: dict[str, Any], param: str, code: str) -> None:
    error = parse(body)
    assert isinstance(error, BodyError), body
    assert (error.status, error.param, error.code) == (400, param, code)
    assert "messages" not in error.message or param == "messages"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "2"}


def test_formats() -> None:
    assert accepted({"text": {"format": {"type": "text"}}}).sampling.grammar is None
    named = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    grammar = accepted({"text": {"format": named}}).sampling.grammar
    assert grammar == Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    grammar = accepted({"text": {"format": {"type": "json_object"}}}).sampling.grammar
    assert grammar is not None
    assert grammar.kind == GrammarKind.JSON_SCHEMA
    assert answer({"text": {"format": named}}).text.format.name == "answer"  # type: ignore[union-attr]


def test_tools() -> None:
    wide = TranslationContext(ByteTokenizer(), max_context=2_000)
    called = {"tools": [ADD, {"type": "function", "name": "greet"}], "parallel_tool_calls": False}
    choices: list[tuple[Any, bool]] = [
        ("auto", False),
        ("required", True),
        ({"type": "function", "name": "add"}, True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]}, False),
    ]
    for choice, is_forced in choices:
        body = {"model": "m", "input": "Hello", **called, "tool_choice": choice}
        translated = parse_response(body, wide, seed_key="k")
        assert isinstance(translated, Translated), translated
        assert translated.calling is not None
        assert translated.calling.is_forced == is_forced
    history = [{"role": "user", "content": "Add."}, CALL, CALL | {"call_id": "c2"}, OUTPUT]
    told = parse_response({"model": "m", "input": history}, wide, seed_key="k")
    assert isinstance(told, Translated), told


def test_calls_in_an_answer() -> None:
    message = {"content": None, "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": "{}"}}]}
    (item,) = output_of({"message": message, "logprobs": None}, "1", "completed")
    assert ResponseFunctionToolCall.model_validate(item, strict=True).call_id == "c1"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "text.format.name"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tools": [ADD | {"name": "a b"}]}, "tools[0].name"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        (
            {
                "tools": [ADD],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "x"}],
                },
            },
            "tool_choice.tools[0].name",
        ),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools", "mode": "x"}}, "tool_choice.mode"),
        ({"instructions": "i", "input": [CALL, CALL | {"arguments": "["}]}, "input[1].arguments"),
        ({"input": [CALL, OUTPUT | {"call_id": 7}]}, "input[1].call_id"),
        ({"input": [CALL | {"call_id": 7}]}, "input[0].call_id"),
    ],
)
def test_what_is_refused_in_formats_and_tools(body: dict[str, Any], param: str) -> None:
    error = parse(body)
    assert isinstance(error, BodyError), body
    assert (error.status, error.param) == (400, param)


def test_an_answer() -> None:
    response = answer({"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0})
    assert response.output_text == "Hi"
    assert (response.id, response.status, response.created_at) == ("resp_1", "completed", 7)
    assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"a": "b"}, 0)
    assert response.error is None
    assert response.incomplete_details is None
    usage = response.usage
    assert usage is not None
    num_prompt_tokens = len("<system>Be brief.<user>Hello<assistant>")
    assert (usage.input_tokens, usage.output_tokens) == (num_prompt_tokens, 3)
    assert (usage.total_tokens, usage.input_tokens_details.cached_tokens) == (num_prompt_tokens + 3, 2)


def test_an_answer_that_was_cut() -> None:
    response = answer({}, reason=FinishReason.LENGTH)
    assert response.status == response.output[0].status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_logprobs() -> None:
    (message,) = answer({"top_logprobs": 1}).output
    assert message.type == "message"
    (text,) = message.content
    assert text.type == "output_text"
    assert text.logprobs is not None
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in text.logprobs] == [("Hi", -0.5, 1)]
