"""The fields of a chat with tools: what the prompt and the answer become of them, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from openai.types.chat import ChatCompletion

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.chat import chat_body, parse_chat
from app.openai.messages import read_messages
from engine.request import Completion, FinishReason
from tests.fakes import ByteTokenizer

CONTEXT = TranslationContext(ByteTokenizer(), max_context=2_000)
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | fields}


ADD, GREET = tool("add", description="d", parameters=SCHEMA, strict=True), tool("greet")
BOTH = {"tools": [ADD, GREET]}


def parse(body: dict[str, Any], context: TranslationContext = CONTEXT) -> Translated | BodyError:
    return parse_chat({"model": "m", "messages": HELLO} | body, context, seed_key="batch_1:a")


def accepted(body: dict[str, Any]) -> Translated:
    translated = parse(body)
    assert isinstance(translated, Translated), translated
    return translated


def prompt(translated: Translated) -> str:
    return ByteTokenizer().decode(translated.prompts[0])


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool(name) for name in names]}}


@pytest.mark.parametrize(
    ("body", "names", "is_forced", "is_one"),
    [
        (BOTH, {"add", "greet"}, False, False),
        (BOTH | {"tool_choice": "auto", "parallel_tool_calls": False}, {"add", "greet"}, False, True),
        (BOTH | {"tool_choice": "required"}, {"add", "greet"}, True, False),
        (BOTH | {"tool_choice": tool("greet")}, {"greet"}, True, True),
        (BOTH | {"tool_choice": allowed("auto", "add")}, {"add"}, False, False),
        (BOTH | {"tool_choice": allowed("required", "add", "greet")}, {"add", "greet"}, True, False),
    ],
)
def test_who_may_be_called(body: dict[str, Any], names: set[str], is_forced: bool, is_one: bool) -> None:
    translated = accepted(body)
    calling = translated.calling
    assert calling is not None
    assert (calling.names, calling.is_forced, calling.is_one) == (names, is_forced, is_one)
    assert (translated.sampling.grammar is not None) == is_forced
    assert prompt(translated).endswith("<assistant><tool_call>\n" if is_forced else "<assistant>")
    told = json.loads(prompt(translated).removeprefix("<tools>").split("<user>")[0])
    assert {one["function"]["name"] for one in told} == names
    if "add" in names:  # the template sees what it knows
        assert told[0]["function"] == {"name": "add", "description": "d", "parameters": SCHEMA}


@pytest.mark.parametrize(
    "body", [{"tools": []}, {"tool_choice": "auto"}, BOTH | {"tool_choice": "none"}, {"tool_choice": "none"}]
)
def test_without_a_tool_to_call_nothing_changes(body: dict[str, Any]) -> None:
    translated, plain = accepted(body), accepted({})
    assert translated.calling is None
    assert prompt(translated) == prompt(plain)
    assert translated.sampling == plain.sampling


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": [5]}, "invalid_type", "tools[0]"),
        ({"tools": [{}]}, "missing_required_parameter", "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "unsupported_value", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [tool("a b")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [tool("f", parameters=[])]}, "invalid_type", "tools[0].function.parameters"),
        ({"tools": [tool("f", returns={})]}, "unknown_parameter", "tools[0].function.returns"),
        ({"tools": [tool("f"), tool("f")]}, "invalid_value", "tools[1]"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        (BOTH | {"tool_choice": "any"}, "invalid_value", "tool_choice"),
        (BOTH | {"tool_choice": 5}, "invalid_type", "tool_choice"),
        (BOTH | {"tool_choice": {"type": "custom"}}, "invalid_value", "tool_choice.type"),
        (BOTH | {"tool_choice": tool("sub")}, "invalid_value", "tool_choice.function.name"),
        (BOTH | {"tool_choice": allowed("all", "add")}, "invalid_value", "tool_choice.allowed_tools.mode"),
        (BOTH | {"tool_choice": allowed("auto")}, "invalid_value", "tool_choice.allowed_tools.tools"),
        (
            BOTH | {"tool_choice": allowed("auto", "sub")},
            "invalid_value",
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        (BOTH | {"parallel_tool_calls": 1}, "invalid_type", "parallel_tool_calls"),
        (BOTH | {"response_format": {"type": "json_object"}}, "invalid_value", "tools"),
        (BOTH | {"tool_choice": "required", "ignore_eos": True}, "invalid_value", "ignore_eos"),
        (
            {"tools": [tool("f", parameters={"type": "frob"})], "tool_choice": "required"},
            "invalid_value",
            "tools",
        ),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"function_call": {"name": "f"}}, "unsupported_parameter", "function_call"),
    ],
)
def test_what_is_refused(body: dict[str, Any], code: str, param: str) -> None:
    error = parse(body)
    assert isinstance(error, BodyError)
    assert (error.status, error.code, error.param) == (400, code, param), error.message


def test_a_template_without_tools_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = "{{ messages }}"
    error = parse(BOTH, TranslationContext(tokenizer, max_context=2_000))
    assert isinstance(error, BodyError)
    assert (error.code, error.param) == ("unsupported_parameter", "tools")
    assert "chat template" in error.message


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 5}'}}


def test_earlier_calls_and_answers_are_shown() -> None:
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "6"},
    ]
    shown = prompt(accepted({"messages": messages}))
    assert shown == '<user>Hello<assistant>{"name": "add", "arguments": {"a": 5}}<tool>6<assistant>'


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"content": None}, "missing_required_parameter", "content"),
        ({"tool_calls": {}}, "invalid_type", "tool_calls"),
        ({"tool_calls": [CALL | {"id": None}]}, "missing_required_parameter", "tool_calls[0].id"),
        ({"tool_calls": [CALL | {"type": "custom"}]}, "unsupported_value", "tool_calls[0].type"),
        (
            {"tool_calls": [CALL | {"function": {"name": "add", "arguments": "{"}}]},
            "invalid_value",
            "tool_calls[0].function.arguments",
        ),
        (
            {"tool_calls": [CALL | {"function": {"name": "add", "arguments": "[1]"}}]},
            "invalid_value",
            "tool_calls[0].function.arguments",
        ),
        (
            {"tool_calls": [CALL | {"function": {"name": "add", "arguments": {"a": 5}}}]},
            "invalid_type",
            "tool_calls[0].function.arguments",
        ),
    ],
)
def test_calls_of_messages_that_are_refused(message: dict[str, Any], code: str, param: str) -> None:
    error = parse({"messages": [*HELLO, {"role": "assistant"} | message]})
    assert isinstance(error, BodyError)
    assert (error.code, error.param) == (code, f"messages[1].{param}")


def answer(asked: Translated, text: str, finish: FinishReason = FinishReason.STOP) -> ChatCompletion:
    completion = Completion(7, np.arange(len(text), dtype=np.int32), text, finish, 22, 0)
    body = chat_body(asked, [completion], response_id="1", created=9, fingerprint="fp_1")
    return ChatCompletion.model_validate(body, strict=True)


def test_calls_are_what_the_sdk_reads() -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 5}}\n</tool_call>'
    choice = answer(accepted(BOTH), f"So:\n{text}\n{text}").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "So:"
    first, second = choice.message.tool_calls or []
    assert first.type == "function"
    assert (first.function.name, json.loads(first.function.arguments)) == ("add", {"a": 5})
    assert first.id != second.id
    assert len(first.id) == 9
    one = answer(accepted(BOTH | {"parallel_tool_calls": False}), text + text).choices[0]
    assert one.message.content is None
    assert len(one.message.tool_calls or []) == 1


def test_an_answer_without_calls_is_text() -> None:
    choice = answer(accepted(BOTH), "It is 5.").choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
        "stop",
        "It is 5.",
        None,
    )
    cut = answer(accepted(BOTH), '<tool_call>{"name": "add"', FinishReason.LENGTH).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    plain = answer(accepted({}), '<tool_call>{"name": "add", "arguments": {}}</tool_call>').choices[0]
    assert plain.message.tool_calls is None


def test_a_forced_answer_begins_after_its_marker() -> None:
    asked = accepted(BOTH | {"tool_choice": tool("greet")})
    choice = answer(asked, '{"name": "greet", "arguments": {}}\n</tool_call>').choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [call.function.name for call in choice.message.tool_calls or []] == ["greet"]  # type: ignore[union-attr]


def test_a_tools_answer_gets_the_name_of_its_function() -> None:
    tool_answer = {"role": "tool", "tool_call_id": "call_1", "content": "6"}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, tool_answer]
    assert read_messages("messages", messages)[2]["name"] == "add"
    assert read_messages("messages", [*messages[:2], tool_answer | {"name": "own"}])[2]["name"] == "own"
    assert "name" not in read_messages("messages", [*HELLO, tool_answer])[1]
