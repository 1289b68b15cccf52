"""Chat messages: from the wire's shapes to what a chat template takes."""

import json
from typing import Any

from app.openai.body import array, json_object, refuse, required_at, string, wrong_type

# Templates know no "developer": it is the newer name of the same role.
_TEMPLATE_ROLES = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_KNOWN_KEYS = frozenset({"role", "content", "name"})
# Known keys that a text template would drop without a word.
_UNSUPPORTED_KEYS = frozenset({"function_call", "audio", "refusal"})


def read_messages(param: str, value: object) -> list[dict[str, Any]]:
    """Messages with role, text content and, where given, name, tool_calls and tool_call_id; at least one."""
    messages = array(param, value)
    if not messages:
        refuse(
            f"Invalid '{param}': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead.",
            param,
            "invalid_value",
        )
    return _with_names([_message(f"{param}[{i}]", message) for i, message in enumerate(messages)])


def _with_names(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the function's name at each tool's answer, which OpenAI does not write and some templates want."""
    names: dict[str, str] = {}
    for message in messages:
        names.update((call["id"], call["function"]["name"]) for call in message.get("tool_calls", ()))
        if message["role"] == "tool" and message["tool_call_id"] in names:
            message.setdefault("name", names[message["tool_call_id"]])
    return messages


def _message(param: str, value: object) -> dict[str, Any]:
    message = json_object(param, value)
    role = _role(f"{param}.role", message.get("role"))
    _check_keys(param, role, message)
    content = message.get("content")
    calls = _tool_calls(f"{param}.tool_calls", message) if role == "assistant" else []
    if content is None and calls:
        content = ""
    if content is None:
        missing = f"{param}.content"
        refuse(f"Missing required parameter: '{missing}'.", missing, "missing_required_parameter")
    read: dict[str, Any] = {"role": _TEMPLATE_ROLES[role], "content": _text(f"{param}.content", content)}
    if calls:
        read["tool_calls"] = calls
    if message.get("name") is not None:
        read["name"] = string(f"{param}.name", message["name"])
    if role == "tool":
        read["tool_call_id"] = _tool_call_id(f"{param}.tool_call_id", message.get("tool_call_id"))
    return read


def _role(param: str, value: object) -> str:
    if value is None:
        refuse(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    role = string(param, value)
    if role == "function":
        refuse("The role 'function' is deprecated and not supported.", param, "unsupported_value")
    if role not in _TEMPLATE_ROLES:
        supported = ", ".join(f"'{name}'" for name in _TEMPLATE_ROLES)
        refuse(f"Invalid value: '{role}'. Supported values are: {supported}.", param, "invalid_value")
    return role


def _check_keys(param: str, role: str, message: dict[str, Any]) -> None:
    for key, value in message.items():
        if key in _KNOWN_KEYS or (role, key) in (("tool", "tool_call_id"), ("assistant", "tool_calls")):
            continue
        where = f"{param}.{key}"
        if key not in _UNSUPPORTED_KEYS | {"tool_calls"}:
            refuse(f"Unknown parameter: '{where}'.", where, "unknown_parameter")
        if value not in (None, []):
            refuse(f"Unsupported parameter: '{where}' is not supported.", where, "unsupported_parameter")


def _tool_calls(param: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    """As templates take them: with the arguments as an object."""
    value = message.get("tool_calls")
    calls = []
    for i, item in enumerate([] if value is None else array(param, value)):
        where = f"{param}[{i}]"
        call = json_object(where, item)
        kind = required_at(where, call, "type", string)
        if kind != "function":
            refuse(
                f"Unsupported value: '{kind}'. Only calls of the type 'function' are supported here.",
                f"{where}.type",
                "unsupported_value",
            )
        function = required_at(where, call, "function", json_object)
        name = required_at(f"{where}.function", function, "name", string)
        calls.append(
            {
                "id": required_at(where, call, "id", string),
                "type": kind,
                "function": {"name": name, "arguments": _arguments(f"{where}.function", function)},
            }
        )
    return calls


def _arguments(param: str, function: dict[str, Any]) -> dict[str, Any]:
    text = required_at(param, function, "arguments", string)
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        refuse(
            f"Invalid '{param}.arguments': expected a JSON object, written as a string.",
            f"{param}.arguments",
            "invalid_value",
        )
    return arguments


def _tool_call_id(param: str, value: object) -> str:
    if value is None:
        refuse(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return string(param, value)


def _text(param: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        wrong_type(param, "a string or an array of content parts", content)
    # Separate parts stay separate in the prompt: glued together they would make new words.
    return "\n".join(_text_part(f"{param}[{i}]", part) for i, part in enumerate(content))


def _text_part(param: str, value: object) -> str:
    part = json_object(param, value)
    kind_param = f"{param}.type"
    if part.get("type") is None:
        refuse(f"Missing required parameter: '{kind_param}'.", kind_param, "missing_required_parameter")
    kind = string(kind_param, part["type"])
    if kind != "text":
        refuse(
            f"Invalid value: '{kind}'. This model takes text only; supported values are: 'text'.",
            kind_param,
            "unsupported_value",
        )
    text_param = f"{param}.text"
    if part.get("text") is None:
        refuse(f"Missing required parameter: '{text_param}'.", text_param, "missing_required_parameter")
    return string(text_param, part["text"])
