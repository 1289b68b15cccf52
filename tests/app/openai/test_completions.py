"""Every field of contract 10.3: honoured, ignored, or a 400 that says why."""

from typing import Any

import numpy as np
import pytest
from openai.types import Completion as SdkCompletion

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.completions import completion_body, parse_completion
from engine.request import Completion, FinishReason
from tests.fakes import ByteTokenizer

CONTEXT = TranslationContext(ByteTokenizer(), max_context=50, default_max_tokens=40)


def parse(body: dict[str, Any]) -> Translated | BodyError:
    return parse_completion({"model": "m", "prompt": "Once"} | body, CONTEXT, seed_key="batch_1:a")


def accepted(body: dict[str, Any]) -> Translated:
    translated = parse(body)
    assert isinstance(translated, Translated), translated
    return translated


def test_defaults() -> None:
    translated = accepted({})
    assert translated.prompt_ids.tolist() == list(b"Once")
    assert translated.sampling.max_tokens == 16


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
def test_prompt_forms(prompt: str | list[int]) -> None:
    prompt_ids = accepted({"prompt": prompt}).prompt_ids
    assert prompt_ids.dtype == np.int32
    assert prompt_ids.tolist() == [97, 98, 99]


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_tokens": 3}, "max_tokens", 3),
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"seed": 3}, "seed", 3),
        ({"stop": ["x"]}, "stop", ("x",)),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"logit_bias": {"1": 1}}, "logit_bias", ((1, 1.0),)),
        ({"presence_penalty": 1}, "presence_penalty", 1.0),
        ({"min_tokens": 16}, "min_tokens", 16),
    ],
)
def test_honoured(body: dict[str, Any], field: str, value: object) -> None:
    assert getattr(accepted(body).sampling, field) == value


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1},
        {"best_of": 1},
        {"echo": False},
        {"logprobs": None},
        {"suffix": None},
        {"user": "u"},
        {"frequency_penalty": 0},
        {"presence_penalty": 0},
        {"logit_bias": {}},
        {"stream": False},
    ],
)
def test_changes_nothing(body: dict[str, Any]) -> None:
    assert accepted(body).sampling == accepted({}).sampling


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"logprobs": 0}, "unsupported_parameter", "logprobs"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"prompt": ["a", "b"]}, "unsupported_parameter", "prompt"),
        ({"prompt": [[1], [2]]}, "unsupported_parameter", "prompt"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"max_completion_tokens": 4}, "unknown_parameter", "max_completion_tokens"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": 5}, "invalid_type", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_type", "prompt[1]"),
        ({"prompt": [1, True]}, "invalid_type", "prompt[1]"),
        ({"prompt": [1, 256]}, "invalid_value", "prompt[1]"),
        ({"prompt": [-1]}, "invalid_value", "prompt[0]"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 47}, "context_length_exceeded", "prompt"),
        ({"prompt": "x" * 50}, "context_length_exceeded", "prompt"),
    ],
)
def test_body_errors(body: dict[str, Any], code: str, param: str) -> None:
    error = parse(body)
    assert isinstance(error, BodyError)
    assert (error.status, error.code, error.param) == (400, code, param)


def test_response_body_is_what_the_sdk_reads() -> None:
    completion = Completion(7, np.array([5], np.int32), " hi", FinishReason.STOP, 1, 0)
    body = completion_body(completion, response_id="1", created=9, model="m", fingerprint="fp")
    assert " ".join(body) == "id object created model choices usage system_fingerprint"
    assert " ".join(body["choices"][0]) == "index text logprobs finish_reason"
    assert SdkCompletion.model_validate(body, strict=True).choices[0].text == " hi"
