"""What an output has to be: `response_format`, and the names that vLLM's users know for the same and more."""

import json
import re
from collections.abc import Callable
from typing import Any

from app.openai.body import (
    Json,
    TranslationContext,
    array,
    boolean,
    json_object,
    optional,
    refuse,
    required_at,
    string,
)
from engine.errors import GrammarError
from engine.request import Grammar, GrammarKind

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANY_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')


def read_grammar(body: Json, context: TranslationContext) -> Grammar | None:
    """The one grammar that the body asks for, checked; None: the output is free."""
    found = [
        (param, grammar)
        for param, read in _READERS.items()
        if body.get(param) is not None and (grammar := read(param, body[param])) is not None
    ]
    if not found:
        return None
    if len(found) > 1:
        first, second = found[0][0], found[1][0]
        refuse(f"Invalid '{second}': it does not go together with '{first}'.", second, "invalid_value")
    param, grammar = found[0]
    if optional(body, "ignore_eos", boolean, False):
        refuse(
            f"Invalid 'ignore_eos': it does not go together with '{param}'.", "ignore_eos", "invalid_value"
        )
    check_grammar(param, grammar, context)
    return grammar


def check_grammar(param: str, grammar: Grammar, context: TranslationContext) -> None:
    """Refuses what no output of the model can be held to."""
    try:
        context.tokenizer.check_grammar(grammar)
    except GrammarError as error:
        kind = "schema" if grammar.kind is GrammarKind.JSON_SCHEMA else "grammar"
        refuse(f"Invalid {kind} in '{param}': {error}.", param, "invalid_value")


def check_name(param: str, name: str) -> str:
    if not NAME.fullmatch(name):
        refuse(
            f"Invalid '{param}': '{name[:80]}' does not match '^{NAME.pattern}$'.",
            param,
            "invalid_value",
        )
    return name


def _response_format(param: str, value: object) -> Grammar | None:
    asked = json_object(param, value)
    kind = required_at(param, asked, "type", string)
    if kind == "text":
        return None
    if kind == "json_object":
        return _ANY_OBJECT
    if kind != "json_schema":
        refuse(
            f"Invalid value: '{kind}'. Supported values are: 'text', 'json_object', 'json_schema'.",
            f"{param}.type",
            "invalid_value",
        )
    inner = f"{param}.json_schema"
    told = required_at(param, asked, "json_schema", json_object)
    for key in told.keys() - {"name", "description", "schema", "strict"}:
        refuse(f"Unknown parameter: '{inner}.{key}'.", f"{inner}.{key}", "unknown_parameter")
    check_name(f"{inner}.name", required_at(inner, told, "name", string))
    for key, read in (("description", string), ("strict", boolean)):
        if told.get(key) is not None:
            read(f"{inner}.{key}", told[key])
    if told.get("schema") is None:
        return _ANY_OBJECT
    return schema_grammar(json_object(f"{inner}.schema", told["schema"]))


def schema_grammar(schema: object) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def _schema(param: str, value: object) -> Grammar:
    """An object, or one written as a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            refuse(f"Invalid '{param}': it is not JSON: {error}.", param, "invalid_value")
    return schema_grammar(json_object(param, value))


def _regex(param: str, value: object) -> Grammar:
    return Grammar(GrammarKind.REGEX, string(param, value))


def _lark(param: str, value: object) -> Grammar:
    return Grammar(GrammarKind.LARK, string(param, value))


def _choice(param: str, value: object) -> Grammar:
    choices = [string(f"{param}[{i}]", choice) for i, choice in enumerate(array(param, value))]
    if not choices or "" in choices:
        refuse(
            f"Invalid '{param}': it needs at least one text, and none that is empty.", param, "invalid_value"
        )
    return Grammar(GrammarKind.CHOICE, json.dumps(choices))


def _any_object(param: str, value: object) -> Grammar | None:
    return _ANY_OBJECT if boolean(param, value) else None


_STRUCTURED: dict[str, Callable[[str, Any], Grammar | None]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
    "json_object": _any_object,
}


def _structured_outputs(param: str, value: object) -> Grammar | None:
    asked = {key: item for key, item in json_object(param, value).items() if item is not None}
    for key in asked.keys() - _STRUCTURED.keys():
        refuse(f"Unsupported parameter: '{param}.{key}'.", f"{param}.{key}", "unsupported_parameter")
    if len(asked) != 1:
        refuse(
            f"Invalid '{param}': expected one of {', '.join(map(repr, _STRUCTURED))}, but got {len(asked)}.",
            param,
            "invalid_value",
        )
    ((key, item),) = asked.items()
    return _STRUCTURED[key](f"{param}.{key}", item)


_READERS: dict[str, Callable[[str, Any], Grammar | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _lark,
}
