"""What outputs are asked to be: every way to say it, and what each refuses."""

import json
from typing import Any

import pytest

from app.openai.body import BodyError, BodyRefused, TranslationContext
from app.openai.grammars import read_grammar
from engine.request import Grammar, GrammarKind
from tests.fakes import ByteTokenizer

CONTEXT = TranslationContext(ByteTokenizer(), max_context=200)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
ANY = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
REGEX = Grammar(GrammarKind.REGEX, "a+")
CHOICE = Grammar(GrammarKind.CHOICE, '["a", "b"]')
LARK = Grammar(GrammarKind.LARK, 'start: "a"')


def _format(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer"} | fields}}


@pytest.mark.parametrize(
    ("body", "grammar"),
    [
        ({}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "text"}, "ignore_eos": True}, None),
        ({"response_format": {"type": "json_object"}}, ANY),
        (_format(schema=SCHEMA), JSON),
        (_format(schema=SCHEMA, strict=True, description="d"), JSON),
        (_format(schema=SCHEMA, strict=None, description=None), JSON),
        (_format(), ANY),
        ({"guided_json": SCHEMA}, JSON),
        ({"guided_json": json.dumps(SCHEMA)}, JSON),
        ({"guided_regex": "a+"}, REGEX),
        ({"guided_choice": ["a", "b"]}, CHOICE),
        ({"guided_grammar": 'start: "a"'}, LARK),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, JSON),
        ({"structured_outputs": {"regex": "a+"}}, REGEX),
        ({"structured_outputs": {"choice": ["a", "b"]}}, CHOICE),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, LARK),
        ({"structured_outputs": {"json_object": True}}, ANY),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"response_format": {"type": "text"}, "guided_regex": "a+"}, REGEX),
    ],
)
def test_what_is_asked_for(body: dict[str, Any], grammar: Grammar | None) -> None:
    assert read_grammar(body, CONTEXT) == grammar


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"response_format": "json"}, "invalid_type", "response_format"),
        ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (_format(name=None), "missing_required_parameter", "response_format.json_schema.name"),
        (_format(name="a b"), "invalid_value", "response_format.json_schema.name"),
        (_format(name="a" * 65), "invalid_value", "response_format.json_schema.name"),
        (_format(strict="yes"), "invalid_type", "response_format.json_schema.strict"),
        (_format(description=5), "invalid_type", "response_format.json_schema.description"),
        (_format(schema=[]), "invalid_type", "response_format.json_schema.schema"),
        (_format(scheme={}), "unknown_parameter", "response_format.json_schema.scheme"),
        (_format(schema={"type": "frob"}), "invalid_value", "response_format"),
        ({"guided_json": "{"}, "invalid_value", "guided_json"),
        ({"guided_json": "[1]"}, "invalid_type", "guided_json"),
        ({"guided_json": 5}, "invalid_type", "guided_json"),
        ({"guided_json": {"not": {}}}, "invalid_value", "guided_json"),
        ({"guided_regex": 5}, "invalid_type", "guided_regex"),
        ({"guided_regex": "(?=a)"}, "invalid_value", "guided_regex"),
        ({"guided_choice": []}, "invalid_value", "guided_choice"),
        ({"guided_choice": ["a", ""]}, "invalid_value", "guided_choice"),
        ({"guided_choice": ["a", 5]}, "invalid_type", "guided_choice[1]"),
        ({"guided_grammar": "start: b"}, "invalid_value", "guided_grammar"),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "invalid_value", "structured_outputs"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "unsupported_parameter",
            "structured_outputs.structural_tag",
        ),
        ({"structured_outputs": {"regex": "["}}, "invalid_value", "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "invalid_value", "guided_choice"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "invalid_value",
            "guided_regex",
        ),
        ({"guided_regex": "a", "ignore_eos": True}, "invalid_value", "ignore_eos"),
    ],
)
def test_what_is_refused(body: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(BodyRefused) as refused:
        read_grammar(body, CONTEXT)
    error = refused.value.error
    assert isinstance(error, BodyError)
    assert (error.status, error.code, error.param) == (400, code, param), error.message
    assert error.message
