"""The text subset of /v1/responses: what is honoured, what is a 400, and an answer that the SDK takes."""

from typing import Any

import numpy as np
import pytest
from openai.types.responses import Response

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.responses import parse_response, response_body
from engine.request import Completion, FinishReason, TokenLogprob
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
