"""The text of tool calls in each family's format: told from the template, forced, and read back."""

import json

import pytest

from app.openai.tool_formats import HERMES, LLAMA, MISTRAL, ToolFormat, forced_calls, format_of, read_calls
from engine.errors import GrammarError
from engine.request import Grammar
from tests.engine.text.test_grammar import takes
from tests.tool_templates import HERMES_TEMPLATE, LLAMA_TEMPLATE, MISTRAL_TEMPLATE, PLAIN_TEMPLATE

FORMATS = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL}
NAMES = {"add", "greet"}


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (HERMES_TEMPLATE, HERMES),
        (LLAMA_TEMPLATE, LLAMA),
        (MISTRAL_TEMPLATE, MISTRAL),
        (PLAIN_TEMPLATE, None),
        ("", None),
        ("<tool_call><function=f><parameter=a>", None),
        ("<tool_call>f\n<arg_key>a</arg_key>", None),
        ("[TOOL_CALLS]f[ARGS]{}", None),
    ],
)
def test_the_template_tells_the_format(template: str, form: ToolFormat | None) -> None:
    assert format_of(template) is form


ADD = '{"name": "add", "arguments": {"a": 1, "b": [2]}}'
GREET = '{"name": "greet", "arguments": {"whom": "Zoë </tool_call>\\n"}}'
READ_ADD = ("add", {"a": 1, "b": [2]})
READ_GREET = ("greet", {"whom": "Zoë </tool_call>\n"})


@pytest.mark.parametrize(
    ("family", "text", "has_marker", "before", "calls"),
    [
        ("hermes", f"<tool_call>\n{ADD}\n</tool_call>", False, "", [READ_ADD]),
        (
            "hermes",
            f"Let me see.\n<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{GREET}\n</tool_call>",
            False,
            "Let me see.",
            [READ_ADD, READ_GREET],
        ),
        ("hermes", f"<tool_call>{ADD}", False, "", [READ_ADD]),  # the closing tag was forgotten
        ("hermes", f"{ADD}\n</tool_call>", True, "", [READ_ADD]),  # the opening one was part of the prompt
        ("llama", '{"name": "add", "parameters": {"a": 1, "b": [2]}}', False, "", [READ_ADD]),
        ("llama", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": [2]}}', False, "", [READ_ADD]),
        ("llama", '\n{"name": "add"} ; {"name": "greet"}', False, "", [("add", {}), ("greet", {})]),
        ("mistral", f"[TOOL_CALLS][{ADD}, {GREET}]", False, "", [READ_ADD, READ_GREET]),
        ("mistral", f"[TOOL_CALLS] {ADD}", False, "", [READ_ADD]),
        ("mistral", f"Well. [{GREET}]", True, "Well.", [READ_GREET]),
        (
            "hermes",
            '<tool_call>{"name": "add", "arguments": {"a": "x\ny"}}',
            False,
            "",
            [("add", {"a": "x\ny"})],
        ),
    ],
)
def test_calls_are_read(
    family: str, text: str, has_marker: bool, before: str, calls: list[tuple[str, object]]
) -> None:
    found = read_calls(text, FORMATS[family], NAMES, has_marker=has_marker)
    assert found is not None
    assert found[0] == before
    assert [(call.name, json.loads(call.arguments)) for call in found[1]] == calls


@pytest.mark.parametrize(
    ("family", "text", "has_marker"),
    [
        ("hermes", "It is 5.", False),
        ("hermes", ADD, False),  # JSON that nothing marks as a call is an answer
        ("hermes", f"<tool_call>\n{ADD[:-4]}", False),  # cut off
        ("hermes", "<tool_call>\n</tool_call>", False),
        ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>', False),
        ("hermes", '<tool_call>{"name": "add", "arguments": 5}</tool_call>', False),
        ("hermes", f"<tool_call>\n{ADD}\n</tool_call> That is it.", False),
        ("llama", 'See {"name": "add", "parameters": {}}', False),
        ("llama", '{"answer": 5}', False),
        ("llama", '{"name": "add", "parameters": {}} it is', False),
        ("mistral", f"[{ADD}]", False),
        ("mistral", "nothing", True),
        ("mistral", '[5, "a"]', True),
    ],
)
def test_what_is_no_call_stays_text(family: str, text: str, has_marker: bool) -> None:
    assert read_calls(text, FORMATS[family], NAMES, has_marker=has_marker) is None


SCHEMAS = {
    "add": {
        "$defs": {"number": {"type": "integer", "minimum": 0, "maximum": 9}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/number"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "greet": {"type": "object", "properties": {}, "additionalProperties": False},
}


def _call(form: ToolFormat, name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}'


@pytest.mark.parametrize("family", FORMATS)
def test_forced_calls_have_the_schema_of_their_function(family: str) -> None:
    form = FORMATS[family]
    one = forced_calls(form, SCHEMAS, is_one=True)
    several = forced_calls(form, SCHEMAS, is_one=False)

    def text(*calls: str) -> str:
        return form.before + (form.between or "; ").join(calls) + form.after

    add, greet = _call(form, "add", '{"a": 7}'), _call(form, "greet", "{}")
    for taken in (add, greet):
        assert takes(one, text(taken))
        assert takes(several, text(taken))
        found = read_calls(text(taken), form, NAMES, has_marker=True)
        assert found is not None
        assert found[0] == ""
    assert not takes(one, text(add, greet))
    assert takes(several, text(add, greet)) == (form.between is not None)
    assert not takes(several, text(*[add] * 9))
    for bad in (_call(form, "add", '{"a": 10}'), _call(form, "add", "{}"), _call(form, "sub", "{}"), ""):
        assert not takes(one, text(bad))
    assert not takes(one, text(_call(form, "add", '{"a":   7}')))  # few blanks here as well


def test_names_and_schemas_cannot_break_out_of_the_grammar() -> None:
    schema = {"type": "object", "properties": {'a"\nb: /.*/': {"enum": ["%json {", '"']}}}
    grammar: Grammar = forced_calls(HERMES, {'f"-g': schema}, is_one=True)
    arguments = json.dumps({'a"\nb: /.*/': "%json {"})
    assert takes(grammar, f'{{"name": "f\\"-g", "arguments": {arguments}}}\n</tool_call>')
    with pytest.raises(GrammarError):
        takes(forced_calls(HERMES, {"f": {"type": "frob"}}, is_one=True), "")
