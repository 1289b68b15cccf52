"""Forced calls through the whole engine, in the formats of three families, and back into a conversation."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.openai.body import BodyError, TranslationContext
from app.openai.chat import chat_body, parse_chat
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution.resolve import DEFAULT_MODEL
from tests.engine.runs import run, tiny_engine
from tests.tool_templates import FAMILIES, HERMES_TEMPLATE, save_tool_model

Body = dict[str, Any]
ADD = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 8},
    },
    "required": ["a", "note"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD}},
    {"type": "function", "function": {"name": "stop"}},
]
SCHEMAS = {"add": ADD, "stop": {"type": "object", "maxProperties": 0}}
USER = {"role": "user", "content": "What is 2 and 3?"}


def _ask(engine: Engine, body: Body) -> list[Body] | BodyError:
    context = TranslationContext(engine.tokenizer, engine.max_context)
    whole = {"model": "m", "messages": [USER], "tools": TOOLS, "max_tokens": 1_200} | body
    asked = parse_chat(whole, context, seed_key="batch_1:a")
    if isinstance(asked, BodyError):
        return asked
    done = run(engine, asked.requests(range(asked.num_requests)))
    completions = [done[number] for number in range(asked.num_requests)]
    choices: list[Body] = chat_body(asked, completions, response_id="1", created=9, fingerprint="f")[
        "choices"
    ]
    return choices


def _check(choices: list[Body] | BodyError, names: set[str]) -> list[Body]:
    """Of the choices, whose calls must all be valid calls of these functions."""
    assert isinstance(choices, list), choices
    for choice in choices:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        for call in choice["message"]["tool_calls"]:
            assert call["function"]["name"] in names
            schema = SCHEMAS[call["function"]["name"]]
            jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    return choices


@pytest.fixture(scope="module", params=FAMILIES)
def engine(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Engine:
    return tiny_engine(save_tool_model(tmp_path_factory.mktemp("tools") / request.param, request.param))


def test_forced_calls_are_valid_and_go_back_into_the_conversation(engine: Engine) -> None:
    named = {"tool_choice": {"type": "function", "function": {"name": "add"}}}
    choices = _check(_ask(engine, named | {"n": 4, "seed": 1}), {"add"})
    assert all(len(choice["message"]["tool_calls"]) == 1 for choice in choices)
    assert len({call["message"]["tool_calls"][0]["function"]["arguments"] for call in choices}) > 1
    message = choices[0]["message"]
    call_id = message["tool_calls"][0]["id"]
    messages = [USER, message, {"role": "tool", "tool_call_id": call_id, "content": "5"}]
    messages[1] = {key: message[key] for key in ("role", "content", "tool_calls")}
    again = _ask(engine, {"messages": messages, "tool_choice": "none", "max_tokens": 5})
    assert isinstance(again, list), again
    assert "tool_calls" not in again[0]["message"]


def test_required_calls_choose_their_functions(engine: Engine) -> None:
    choices = _check(_ask(engine, {"tool_choice": "required", "n": 8, "seed": 3}), {"add", "stop"})
    calls = [call for choice in choices for call in choice["message"]["tool_calls"]]
    assert len({call["id"] for call in calls}) == len(calls)
    letter = str(engine.tokenizer.encode("s")[0])
    biased = _check(_ask(engine, {"tool_choice": "required", "logit_bias": {letter: 100}}), {"stop"})
    assert biased[0]["message"]["tool_calls"][0]["function"]["arguments"] == "{}"
    body = {"tool_choice": "required", "parallel_tool_calls": False, "n": 8, "seed": 3}
    alone = _check(_ask(engine, body), {"add", "stop"})
    assert {len(choice["message"]["tool_calls"]) for choice in alone} == {1}


def test_a_forced_call_that_is_cut_off_is_no_call(engine: Engine) -> None:
    choices = _ask(engine, {"tool_choice": "required", "max_tokens": 4})
    assert isinstance(choices, list)
    assert choices[0]["finish_reason"] == "length"
    assert "tool_calls" not in choices[0]["message"]


def test_a_template_that_shows_no_tools_is_a_400_line(tiny_llama_dir: Path) -> None:
    plain = tiny_engine(tiny_llama_dir)
    error = _ask(plain, {})
    assert isinstance(error, BodyError)
    assert (error.status, error.param) == (400, "tools")
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [USER, {"role": "assistant", "content": "Well.", "tool_calls": [call]}]
    error = _ask(plain, {"messages": messages, "tools": None})
    assert isinstance(error, BodyError)
    assert (error.status, error.param) == (400, "messages")
    assert "tool_calls" in error.message


@pytest.mark.long
def test_forced_calls_of_the_real_model(smollm2_dir: Path, tmp_path: Path) -> None:
    """SmolLM2, whose own template knows no tools, with one that does."""
    for file in smollm2_dir.iterdir():
        if not file.name.startswith("chat_template"):
            (tmp_path / file.name).symlink_to(file)
    own = TranslationContext(_real(smollm2_dir).tokenizer, 1000)
    body = {"model": DEFAULT_MODEL, "messages": [USER], "tools": TOOLS}
    refused = parse_chat(body, own, seed_key="a")
    assert isinstance(refused, BodyError)
    assert refused.param == "tools"
    (tmp_path / "chat_template.jinja").write_text(HERMES_TEMPLATE)
    engine = _real(tmp_path)
    for temperature in (0, 1):
        body = {"tool_choice": "required", "n": 8, "temperature": temperature}
        _check(_ask(engine, body), {"add", "stop"})
    named = {"tool_choice": {"type": "function", "function": {"name": "add"}}, "n": 8}
    _check(_ask(engine, named), {"add"})


def _real(path: Path) -> Engine:
    engine = build_engine(EngineConfig(str(path), kv_memory_bytes=256 << 20))
    assert isinstance(engine, Engine)
    return engine
