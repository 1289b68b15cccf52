"""Every field of contract 10.3: honoured, ignored, or a 400 that says why."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from openai.types import Completion as SdkCompletion

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.completions import completion_body, parse_completion
from engine.request import Completion, FinishReason, TokenLogprob
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
    assert [ids.tolist() for ids in translated.prompts] == [list(b"Once")]
    assert translated.sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["abc"]),
        ([97, 98, 99], ["abc"]),
        (["abc"], ["abc"]),
        (["abc", "d", "abc"], ["abc", "d", "abc"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)
def test_prompt_forms(prompt: object, texts: list[str]) -> None:
    prompts = accepted({"prompt": prompt}).prompts
    assert [ids.dtype for ids in prompts] == [np.int32] * len(texts)
    assert [bytes(ids.tolist()).decode() for ids in prompts] == texts
    assert accepted({"prompt": prompt, "echo": True}).echo == tuple(texts)


def test_samples_go_by_prompt_then_number() -> None:
    requests = accepted({"prompt": ["a", "b"], "n": 3}).requests(range(6))
    assert [request.prompt_ids.tolist() for request in requests] == [[97]] * 3 + [[98]] * 3
    assert len({request.sampling.seed for request in requests}) == 6


@pytest.mark.parametrize(
    ("body", "counts", "top_logprobs", "has_logprobs"),
    [
        ({}, (1, 1), None, False),
        ({"n": 2}, (2, 2), None, False),
        ({"best_of": 0}, (1, 1), None, False),
        ({"best_of": 2, "n": 2}, (2, 2), None, False),
        ({"best_of": 3}, (3, 1), 0, False),
        ({"best_of": 3, "logprobs": 2}, (3, 1), 2, True),
        ({"logprobs": 0}, (1, 1), 0, True),
    ],
)
def test_counts_and_logprobs(
    body: dict[str, Any], counts: tuple[int, int], top_logprobs: int | None, has_logprobs: bool
) -> None:
    translated = accepted(body)
    assert (translated.num_samples, translated.num_choices) == counts
    assert (translated.sampling.top_logprobs, translated.has_logprobs) == (top_logprobs, has_logprobs)


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
        ({"n": 129}, "invalid_value", "n"),
        ({"best_of": 21}, "invalid_value", "best_of"),
        ({"best_of": 2, "n": 3}, "invalid_value", "best_of"),
        ({"echo": 1}, "invalid_type", "echo"),
        ({"echo": True, "logprobs": 0}, "unsupported_parameter", "echo"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"top_logprobs": 2}, "unknown_parameter", "top_logprobs"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt[1]"),
        ({"prompt": ["a", ""]}, "invalid_value", "prompt[1]"),
        ({"prompt": [""]}, "invalid_value", "prompt[0]"),
        ({"prompt": [[1], [2, "a"]]}, "invalid_type", "prompt[1][1]"),
        ({"prompt": [[1], []]}, "invalid_value", "prompt[1]"),
        ({"prompt": [[1], "a"]}, "invalid_type", "prompt[1]"),
        ({"prompt": [[[1]]]}, "invalid_type", "prompt[0][0]"),
        ({"prompt": [1.5]}, "invalid_type", "prompt[0]"),
        ({"prompt": ["a", "x" * 50]}, "context_length_exceeded", "prompt"),
        ({"prompt": ["a"] * 2049, "n": 2}, "invalid_value", "prompt"),
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


def completion(text: str, logprob: float | None = None) -> Completion:
    tokens = None if logprob is None else (TokenLogprob(text.encode(), logprob, (), 0),)
    return Completion(7, np.array([5], np.int32), text, FinishReason.STOP, 4, 0, tokens)


def response(asked: Translated, completions: Sequence[Completion]) -> SdkCompletion:
    body = completion_body(asked, completions, response_id="1", created=9, fingerprint="fp")
    assert " ".join(body) == "id object created model choices usage system_fingerprint"
    assert " ".join(body["choices"][0]) == "index text logprobs finish_reason"
    return SdkCompletion.model_validate(body, strict=True)


def test_response_body_is_what_the_sdk_reads() -> None:
    assert response(accepted({}), [completion(" hi")]).choices[0].text == " hi"


def test_choices_are_numbered_by_prompt_then_sample() -> None:
    asked = accepted({"prompt": ["Once", "ab"], "n": 2, "echo": True})
    parsed = response(asked, [completion(text) for text in "wxyz"])
    assert [(one.index, one.text) for one in parsed.choices] == [
        (0, "Oncew"),
        (1, "Oncex"),
        (2, "aby"),
        (3, "abz"),
    ]
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens) == (6, 4)


def test_best_of_answers_with_the_likeliest_and_counts_all() -> None:
    asked = accepted({"prompt": ["a", "b"], "best_of": 3, "n": 2})
    chances = {"p": -3.0, "q": -1.0, "r": -2.0, "s": -0.1, "t": -0.3, "u": -0.2}
    parsed = response(asked, [completion(text, logprob) for text, logprob in chances.items()])
    assert [one.text for one in parsed.choices] == ["q", "r", "s", "u"]
    assert all(one.logprobs is None for one in parsed.choices)
    assert parsed.usage is not None
    assert parsed.usage.completion_tokens == 6


def test_logprobs_are_what_the_sdk_reads() -> None:
    tokens = (
        TokenLogprob(b" h", -0.5, ((b" h", -0.5), (b"\xe2\x82", -1.0)), 0),
        TokenLogprob(b"\xe2\x82", -4.0, ((b"i", -0.25),), 2),
    )
    answer = replace(completion(" h"), logprobs=tokens)
    logprobs = response(accepted({"logprobs": 2}), [answer]).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [" h", "bytes:\\xe2\\x82"]
    assert logprobs.token_logprobs == [-0.5, -4.0]
    assert logprobs.top_logprobs == [
        {" h": -0.5, "bytes:\\xe2\\x82": -1.0},
        {"i": -0.25, "bytes:\\xe2\\x82": -4.0},
    ]
    assert logprobs.text_offset == [0, 2]
