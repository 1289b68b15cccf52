"""Point 16 of the wire contract: chat parameters in the lines of a batch, through the SDK, on both databases.

tests/app/test_parameters.py looks closer, without the service.
"""

from typing import Any

import openai
import pytest

from tests.live import Live, line, results, submit, wait_for

Body = dict[str, Any]
BASE: Body = {"max_tokens": 24, "seed": 7, "temperature": 1, "ignore_eos": True}
GREEDY: Body = BASE | {"temperature": 0}
ALWAYS_40: Body = GREEDY | {"logit_bias": {"40": 100}}
MESSAGES: Body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}

HONOURED: dict[str, Body] = {
    "base": BASE,
    "base again": BASE,
    "greedy": GREEDY,
    "greedy, other seed": GREEDY | {"seed": 8},
    "seed": BASE | {"seed": 8},
    "top_p": BASE | {"top_p": 0},
    "top_k": BASE | {"top_k": 1},
    "min_p": BASE | {"min_p": 1},
    "frequency_penalty": GREEDY | {"frequency_penalty": 2},
    "presence_penalty": GREEDY | {"presence_penalty": 2},
    "repetition_penalty": GREEDY | {"repetition_penalty": 1.5},
    "logit_bias": ALWAYS_40,
    "stop_token_ids": ALWAYS_40 | {"stop_token_ids": [40]},
    "max_tokens": GREEDY | {"max_tokens": 3},
    "max_completion_tokens": GREEDY | {"max_tokens": None, "max_completion_tokens": 3},
    "n": BASE | {"n": 3},
    "logprobs": GREEDY | {"logprobs": True, "top_logprobs": 2},
    "ends": GREEDY | {"logit_bias": {"2": 100}, "ignore_eos": False},
    "min_tokens": GREEDY | {"logit_bias": {"2": 100}, "ignore_eos": False, "min_tokens": 10},
}
IGNORED: Body = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "flex",
    "stream_options": None,
    "verbosity": None,
}
REJECTED: Body = {
    "modalities": ["text", "audio"],
    "audio": {"voice": "v"},
    "web_search_options": {},
    "prediction": {"type": "content", "content": "x"},
}


@pytest.fixture(scope="module")
def answers(live: Live) -> tuple[Body, Body]:
    """Bodies of the output file and of the error file by custom id, of one batch with every line."""
    client: openai.OpenAI = live.client()
    bodies = HONOURED | {name: BASE | {name: value} for name, value in (IGNORED | REJECTED).items()}
    bodies["unknown"] = BASE | {"frobnicate": 1}
    batch = wait_for(
        client, submit(client, [line(name, **MESSAGES, **body) for name, body in bodies.items()])
    )
    outputs, errors = (
        {name: one["response"]["body"] for name, one in results(client, file_id).items()}
        for file_id in (batch.output_file_id, batch.error_file_id)
    )
    assert outputs.keys() == HONOURED.keys() | IGNORED.keys()
    assert errors.keys() == REJECTED.keys() | {"unknown"}
    return outputs, errors


def test_16_honoured_fields(answers: tuple[Body, Body]) -> None:
    outputs, _ = answers
    text = {name: body["choices"][0]["message"]["content"] for name, body in outputs.items()}
    num_tokens = {name: body["usage"]["completion_tokens"] for name, body in outputs.items()}
    assert text["base"] == text["base again"] != text["seed"]
    assert text["greedy"] != text["base"]
    for name in ("greedy, other seed", "top_p", "top_k", "min_p"):
        assert text[name] == text["greedy"], name
    for name in ("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"):
        assert text[name] != text["greedy"], name
        assert num_tokens[name] == 24
    assert (text["stop_token_ids"], num_tokens["stop_token_ids"]) == ("", 1)
    for name in ("max_tokens", "max_completion_tokens"):
        assert num_tokens[name] == 3
        assert outputs[name]["choices"][0]["finish_reason"] == "length"
        assert text["greedy"].startswith(text[name])
    assert (num_tokens["ends"], num_tokens["min_tokens"]) == (1, 11)
    assert outputs["ends"]["choices"][0]["finish_reason"] == "stop"
    choices = outputs["n"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert choices[0]["message"]["content"] == text["base"]
    tokens = outputs["logprobs"]["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 24
    assert {len(token["top_logprobs"]) for token in tokens} == {2}
    assert outputs["base"]["choices"][0]["logprobs"] is None


def test_16_stop_is_not_returned(live: Live, answers: tuple[Body, Body]) -> None:
    """Takes a piece of the greedy text, so a batch of its own."""
    text = answers[0]["greedy"]["choices"][0]["message"]["content"]
    stop = text[4:6]
    client = live.client()
    batch = wait_for(client, submit(client, [line("stop", **MESSAGES, **GREEDY, stop=[stop, "never there"])]))
    choice = results(client, batch.output_file_id)["stop"]["response"]["body"]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text[: text.index(stop)]


@pytest.mark.parametrize("field", IGNORED)
def test_16_ignored_fields(answers: tuple[Body, Body], field: str) -> None:
    assert answers[0][field]["choices"] == answers[0]["base"]["choices"]


@pytest.mark.parametrize("field", [*REJECTED, "unknown"])
def test_16_rejected_fields(answers: tuple[Body, Body], field: str) -> None:
    error = answers[1][field]["error"]
    code, param = (
        ("unknown_parameter", "frobnicate") if field == "unknown" else ("unsupported_parameter", field)
    )
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
