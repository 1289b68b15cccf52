"""How models write calls of tools: the text of each format, a grammar for forced calls, and its reading."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from engine.request import Grammar, GrammarKind
from engine.text.grammar import JSON_OPTIONS

_MOST_FORCED_CALLS = 8  # of one answer: a small model would go on for ever
_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into strings

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls, each of them JSON with a name and arguments.

    marker: what tells that calls follow. Where it is one token, it may be missing from the decoded text.
    opening: how an answer begins that is to be calls; it becomes the end of the prompt.
    before, between, after: what stands around the calls then.
    arguments_key: of the arguments in a call.
    """

    marker: str
    opening: str = ""
    before: str = ""
    between: str | None = None  # None: one call only
    after: str = ""
    arguments_key: str = "arguments"


HERMES = ToolFormat(
    "<tool_call>", "<tool_call>\n", "", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"
)  # Qwen 2.5 and 3 as well
MISTRAL = ToolFormat("[TOOL_CALLS]", "[TOOL_CALLS]", "[", ", ", "]")
LLAMA = ToolFormat("<|python_tag|>", arguments_key="parameters")  # 3.1 and later; the marker is optional
_BETWEEN_VALUES = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", ",", ";")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Calling:
    """How the calls of an answer are found in it.

    names: of the functions that it may call. is_one: only its first call counts.
    is_forced: the answer is calls. marker_id: the format's marker, where it is one token.
    """

    form: ToolFormat
    names: frozenset[str]
    is_forced: bool
    is_one: bool
    marker_id: int | None


def format_of(chat_template: str) -> ToolFormat | None:
    """The format that the template writes calls in; None: none of those known here."""
    if "[TOOL_CALLS]" in chat_template:
        return None if "[ARGS]" in chat_template else MISTRAL  # the newer form has no JSON around it
    if "<tool_call>" in chat_template:
        return None if "<function=" in chat_template or "<arg_key>" in chat_template else HERMES
    return LLAMA if '"parameters": ' in chat_template and "<|start_header_id|>" in chat_template else None


def forced_calls(form: ToolFormat, schemas: Mapping[str, Schema], *, is_one: bool) -> Grammar:
    """Of what follows the opening: one call or more of these functions, with arguments by their schemas."""
    rules = []
    for number, (name, schema) in enumerate(schemas.items()):
        start = f'{{"name": {json.dumps(name)}, "{form.arguments_key}": '
        rules.append(f'call_{number}: {json.dumps(start)} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}")
    more = ""
    if form.between is not None and not is_one:
        more = f"({json.dumps(form.between)} call){{0,{_MOST_FORCED_CALLS - 1}}}"
    before, after = (json.dumps(text) if text else "" for text in (form.before, form.after))
    choices = " | ".join(f"call_{number}" for number in range(len(schemas)))
    return Grammar(
        GrammarKind.LARK, "\n".join([f"start: {before} call {more} {after}", f"call: {choices}", *rules])
    )


def read_calls(
    text: str, form: ToolFormat, names: Collection[str], *, has_marker: bool
) -> tuple[str, list[ToolCall]] | None:
    """What stands before the calls, and the calls; None if the text is no text with calls of these functions.

    has_marker: whether the marker, or the opening before a forced answer, is there though the text lacks it.
    """
    begins = [form.marker]
    if has_marker or (form is LLAMA and text.lstrip().startswith("{")):
        begins += ["[", "{"]
    start = min((place for place in map(text.find, begins) if place >= 0), default=len(text))
    calls = []
    place = start
    while (place := _next_value(text, place)) < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except ValueError:
            return None
        for one in value if isinstance(value, list) else [value]:
            call = _call(one, form, names)
            if call is None:
                return None
            calls.append(call)
    return (text[:start].strip(), calls) if calls else None


def _next_value(text: str, place: int) -> int:
    while True:
        while place < len(text) and text[place].isspace():
            place += 1
        skipped = next((part for part in _BETWEEN_VALUES if text.startswith(part, place)), None)
        if skipped is None:
            return place
        place += len(skipped)


def _call(value: object, form: ToolFormat, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get(form.arguments_key, {})
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))
