"""The tools of a chat: which functions may be called, whether they must be, and what the model is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

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
from app.openai.grammars import check_grammar, check_name
from app.openai.tool_formats import Calling, ToolFormat, forced_calls, format_of
from engine.request import Grammar

_NO_ARGUMENTS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that an answer may call, by name, each as the template takes it.

    is_forced: it calls at least one. is_one: it calls one at most.
    """

    functions: Mapping[str, Json]
    is_forced: bool
    is_one: bool

    @property
    def for_template(self) -> list[dict[str, Any]]:
        return [{"type": "function", "function": dict(function)} for function in self.functions.values()]

    def grammar(self, form: ToolFormat) -> Grammar:
        schemas = {
            name: function.get("parameters") or _NO_ARGUMENTS for name, function in self.functions.items()
        }
        return forced_calls(form, schemas, is_one=self.is_one)


def read_tools(body: Json) -> Tools | None:
    """None: the answer is text, whatever tools there are."""
    functions = optional(body, "tools", _functions, {})
    is_one = not optional(body, "parallel_tool_calls", boolean, True)
    choice = body.get("tool_choice")
    if choice is None:
        choice = "auto"
    if choice == "none" or (choice == "auto" and not functions):
        return None
    if not functions:
        refuse("Invalid 'tool_choice': it needs 'tools'.", "tool_choice", "invalid_value")
    if choice in ("auto", "required"):
        return Tools(functions, choice == "required", is_one)
    if isinstance(choice, str):
        _unknown_choice("tool_choice", choice)
    return _narrowed(json_object("tool_choice", choice), functions, is_one)


def _narrowed(choice: Json, functions: Mapping[str, Json], is_one: bool) -> Tools:
    """What is left of the functions by a choice that names some of them."""
    kind = required_at("tool_choice", choice, "type", string)
    if kind == "function":
        name = _named("tool_choice", choice, functions)
        return Tools({name: functions[name]}, is_forced=True, is_one=True)
    if kind != "allowed_tools":
        _unknown_choice("tool_choice.type", kind)
    where = "tool_choice.allowed_tools"
    allowed = required_at("tool_choice", choice, "allowed_tools", json_object)
    mode = required_at(where, allowed, "mode", string)
    if mode not in ("auto", "required"):
        refuse(
            f"Invalid value: '{mode}'. Supported values are: 'auto', 'required'.",
            f"{where}.mode",
            "invalid_value",
        )
    names = []
    for i, tool in enumerate(required_at(where, allowed, "tools", array)):
        one = json_object(f"{where}.tools[{i}]", tool)
        _check_function(f"{where}.tools[{i}]", one)
        names.append(_named(f"{where}.tools[{i}]", one, functions))
    if not names:
        refuse(f"Invalid '{where}.tools': it must not be empty.", f"{where}.tools", "invalid_value")
    return Tools({name: functions[name] for name in names}, mode == "required", is_one)


def _unknown_choice(param: str, choice: str) -> NoReturn:
    refuse(
        f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', 'required', a function, and "
        "'allowed_tools'.",
        param,
        "invalid_value",
    )


def _named(param: str, tool: Json, functions: Mapping[str, Json]) -> str:
    function = required_at(param, tool, "function", json_object)
    name = required_at(f"{param}.function", function, "name", string)
    if name not in functions:
        refuse(
            f"Invalid value: '{name}' is not among the functions of 'tools'.",
            f"{param}.function.name",
            "invalid_value",
        )
    return name


def _functions(param: str, value: object) -> dict[str, Json]:
    functions: dict[str, Json] = {}
    for i, tool in enumerate(array(param, value)):
        where = f"{param}[{i}]"
        one = json_object(where, tool)
        _check_function(where, one)
        function = required_at(where, one, "function", json_object)
        name = check_name(
            f"{where}.function.name", required_at(f"{where}.function", function, "name", string)
        )
        if name in functions:
            refuse(f"Invalid '{where}': there are two functions '{name}'.", where, "invalid_value")
        functions[name] = _function(f"{where}.function", function)
    return functions


def _check_function(param: str, tool: Json) -> None:
    kind = required_at(param, tool, "type", string)
    if kind != "function":
        refuse(
            f"Unsupported value: '{kind}'. Only tools of the type 'function' are supported here.",
            f"{param}.type",
            "unsupported_value",
        )


def _function(param: str, function: Json) -> Json:
    """As the template takes it: what is null is left out."""
    readers = {"name": string, "description": string, "parameters": json_object, "strict": boolean}
    for key, value in function.items():
        if key not in readers:
            refuse(f"Unknown parameter: '{param}.{key}'.", f"{param}.{key}", "unknown_parameter")
        if value is not None:
            readers[key](f"{param}.{key}", value)
    return {
        key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None
    }


def plan_calling(tools: Tools, context: TranslationContext) -> Calling:
    """Refuses what the model has no known way to do."""
    form = format_of(context.tokenizer.chat_template)
    if form is None:
        refuse(
            "Unsupported parameter: 'tools' is not supported with this model, whose chat template shows "
            "none of the formats of calls that are known here (Hermes and Qwen, Llama 3, Mistral with JSON).",
            "tools",
            "unsupported_parameter",
        )
    if tools.is_forced:
        check_grammar("tools", tools.grammar(form), context)
    marker = context.tokenizer.encode_markup(form.marker)
    return Calling(
        form=form,
        names=frozenset(tools.functions),
        is_forced=tools.is_forced,
        is_one=tools.is_one,
        marker_id=int(marker[0]) if len(marker) == 1 else None,
    )
