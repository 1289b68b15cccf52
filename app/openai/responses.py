"""/v1/responses, its text subset: a body is put into the words of a chat, and a chat's answer into its own.

So whatever a chat honours works here too, and there is one translation of messages, tools and formats.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.openai.body import (
    BodyError,
    BodyRefused,
    Json,
    Translated,
    TranslationContext,
    anything,
    array,
    boolean,
    integer,
    json_object,
    optional,
    refuse,
    required,
    string,
    wrong_type,
)
from app.openai.chat import chat_body, parse_chat
from app.openai.parameters import Unsupported, check_parameters
from engine.request import Completion

# What a chat has under the same name; the last two lines are extensions.
_OF_CHAT = frozenset(
    {
        *("model", "temperature", "top_p", "parallel_tool_calls", "metadata", "user", "store"),
        *("service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop", "stop_token_ids"),
        *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "chat_template_kwargs"),
    }
)
_KNOWN = _OF_CHAT | {
    *("input", "instructions", "max_output_tokens", "top_logprobs", "text", "tools", "tool_choice"),
    "reasoning",
}
_UNSUPPORTED = {
    "stream": Unsupported(boolean, (False,)),
    "stream_options": Unsupported(json_object),
    "background": Unsupported(boolean, (False,)),
    "truncation": Unsupported(string, ("disabled",)),
    "include": Unsupported(array, ([],)),
    "previous_response_id": Unsupported(string),
    "conversation": Unsupported(anything),
    "prompt": Unsupported(json_object),
    "max_tool_calls": Unsupported(anything),
    "moderation": Unsupported(anything),
}
# Names of a chat's parameters -> ours, the longest first.
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "tool_choice.function": "tool_choice",
    "tool_choice.allowed_tools": "tool_choice",
}
_NO_DETAILS = {"description": None, "parameters": None, "strict": False}  # of a tool, for the answer
_TEXT_PARTS = ("input_text", "output_text")


def parse_response(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The body as a request of the engine, or the 400 it deserves."""
    try:
        chat, places = _as_chat(body)
        shown = _shown(body)
    except BodyRefused as refused:
        return refused.error
    asked = parse_chat(chat, context, seed_key=seed_key)
    return _renamed(asked, places) if isinstance(asked, BodyError) else replace(asked, shown=shown)


def _as_chat(body: Json) -> tuple[dict[str, Any], list[list[str]]]:
    """The body as a chat's, and of each of its messages the places here of what it was made of."""
    check_parameters(body, _KNOWN, _UNSUPPORTED)
    chat = {name: value for name, value in body.items() if name in _OF_CHAT}
    messages, places = _messages(body)
    chat["messages"] = messages
    chat["max_completion_tokens"] = optional(body, "max_output_tokens", integer(16), None)
    if num_top := optional(body, "top_logprobs", integer(0, 20), 0):
        chat |= {"logprobs": True, "top_logprobs": num_top}
    chat["response_format"] = _format(optional(body, "text", json_object, {}))
    chat["reasoning_effort"] = _effort(optional(body, "reasoning", json_object, {}))
    if tools := optional(body, "tools", array, []):
        chat["tools"] = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    return chat, places


def _messages(body: Json) -> tuple[list[dict[str, Any]], list[list[str]]]:
    messages: list[dict[str, Any]] = []
    places: list[list[str]] = []
    instructions = optional(body, "instructions", string, None)
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
        places.append(["instructions"])
    given = required(body, "input", anything)
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
        places.append(["input"])
        return messages, places
    if not isinstance(given, list):
        wrong_type("input", "a string or an array", given)
    if not given:
        refuse("Invalid 'input': it must not be empty.", "input", "invalid_value")
    for i, item in enumerate(given):
        place = f"input[{i}]"
        message = _message(place, json_object(place, item))
        if messages and "tool_calls" in message and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"] += message["tool_calls"]  # one turn of the assistant's
            places[-1].append(place)
        else:
            messages.append(message)
            places.append([place])
    return messages, places


def _message(place: str, item: Json) -> dict[str, Any]:
    kind = optional(item, "type", lambda _, value: string(f"{place}.type", value), "message")
    if kind == "function_call":
        _check_keys(place, item, ("call_id", "name", "arguments"))
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        _check_keys(place, item, ("call_id", "output"))
        content = _content(f"{place}.output", item["output"])
        return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
    if kind != "message":
        supported = "'message', 'function_call', 'function_call_output'"
        message = f"Invalid value: '{kind}'. Supported values are: {supported}."
        refuse(message, f"{place}.type", "unsupported_value")
    _check_keys(place, item, ("role", "content"))
    return {"role": item["role"], "content": _content(f"{place}.content", item["content"])}


def _check_keys(place: str, item: Json, needed: Sequence[str]) -> None:
    """`id`, `status` and `phase` come with what an earlier answer is given back as, and say nothing here."""
    for key in item:
        if key not in (*needed, "type", "id", "status", "phase"):
            refuse(f"Unknown parameter: '{place}.{key}'.", f"{place}.{key}", "unknown_parameter")
    for key in needed:
        if item.get(key) is None:
            missing = f"{place}.{key}"
            refuse(f"Missing required parameter: '{missing}'.", missing, "missing_required_parameter")


def _content(place: str, content: object) -> object:
    """Text parts as a chat has them; what is no array is left to the chat's reader."""
    if not isinstance(content, list):
        return content
    return [_part(f"{place}[{i}]", json_object(f"{place}[{i}]", part)) for i, part in enumerate(content)]


def _part(place: str, part: Json) -> dict[str, Any]:
    kind = part.get("type")
    if kind not in _TEXT_PARTS:
        supported = ", ".join(f"'{name}'" for name in _TEXT_PARTS)
        message = f"Invalid value: '{kind}'. This model takes text only; supported values are: {supported}."
        refuse(message, f"{place}.type", "unsupported_value")
    return {"type": "text", "text": part.get("text")}


def _format(text: Json) -> dict[str, Any] | None:
    """`text.format`, which names what a chat nests under `json_schema` side by side."""
    _check_options("text", text, "format")
    given = optional(text, "format", lambda _, value: json_object("text.format", value), {})
    if given.get("type") in (None, "text"):
        return None
    if given["type"] != "json_schema":
        return dict(given)
    return {"type": "json_schema", "json_schema": _without_type(given)}


def _without_type(value: Json) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "type"}


def _effort(reasoning: Json) -> object:
    _check_options("reasoning", reasoning, "effort")
    return reasoning.get("effort")


def _check_options(place: str, options: Json, honoured: str) -> None:
    for key, value in options.items():
        if key != honoured and value is not None:
            message = f"Unsupported parameter: '{place}.{key}' is not supported here with the value given."
            refuse(message, f"{place}.{key}", "unsupported_parameter")


def _tool(place: str, value: object) -> dict[str, Any]:
    tool = json_object(place, value)
    if tool.get("type") != "function":
        message = f"Invalid value: '{tool.get('type')}'. Supported values are: 'function'."
        refuse(message, f"{place}.type", "unsupported_value")
    return {"type": "function", "function": _without_type(tool)}


def _tool_choice(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if value.get("type") == "allowed_tools":
        tools = [
            _tool(f"tool_choice.tools[{i}]", tool)
            for i, tool in enumerate(optional(value, "tools", array, []))
        ]
        return {"type": "allowed_tools", "allowed_tools": {"mode": value.get("mode"), "tools": tools}}
    if value.get("type") != "function":
        message = f"Invalid value: '{value.get('type')}'. Supported values are: 'function', 'allowed_tools'."
        refuse(message, "tool_choice.type", "unsupported_value")
    return {"type": "function", "function": _without_type(value)}


def _renamed(error: BodyError, places: Sequence[Sequence[str]]) -> BodyError:
    """What a chat refuses, with the parameter's name as it is here."""
    old = error.param or ""
    in_message = re.match(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\](?:\.function)?)?", old)
    if in_message is not None:
        place = places[int(in_message[1])][int(in_message[2] or 0)]
        new = place + re.sub(r"^\.(?:tool_call_)?id$", ".call_id", old[in_message.end() :])
    else:
        new = re.sub(r"^messages$", "input", old)
    new = re.sub(r"\b(tools\[\d+\])\.function", r"\1", new)
    for theirs, ours in _NAMES.items():
        new = re.sub(rf"^{re.escape(theirs)}\b", ours, new)
    if new == old:
        return error
    return replace(error, param=new, message=error.message.replace(old, new))


def _shown(body: Json) -> dict[str, Any]:
    """What the answer repeats of the body."""
    metadata = optional(body, "metadata", json_object, {})
    text = optional(body, "text", json_object, {})
    effort = optional(body, "reasoning", json_object, {}).get("effort")
    choice = body.get("tool_choice")
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": metadata,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "reasoning": {"effort": effort, "summary": None},
        "temperature": 1.0 if body.get("temperature") is None else body["temperature"],
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": "auto" if choice is None else choice,
        "tools": [_NO_DETAILS | tool for tool in body.get("tools") or ()],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": 1.0 if body.get("top_p") is None else body["top_p"],
        "user": body.get("user"),
    }


def response_body(
    asked: Translated,
    completions: Sequence[Completion],
    *,
    response_id: str,
    created: int,
    fingerprint: str,
) -> dict[str, Any]:
    """The response body. `created` is in unix seconds."""
    assert asked.shown is not None
    chat = chat_body(asked, completions, response_id=response_id, created=created, fingerprint=fingerprint)
    (choice,) = chat["choices"]
    is_cut = choice["finish_reason"] == "length"
    status = "incomplete" if is_cut else "completed"
    return {
        "id": f"resp_{response_id}",
        "object": "response",
        "created_at": created,
        "completed_at": None if is_cut else created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": asked.model,
        "output": output_of(choice, response_id, status),
        "usage": _usage(chat["usage"]),
        "background": False,
        "previous_response_id": None,
        "service_tier": "default",
        "store": False,
        "truncation": "disabled",
        **asked.shown,
    }


def output_of(choice: Mapping[str, Any], response_id: str, status: str) -> list[dict[str, Any]]:
    """Items of an answer: the text of a chat's choice, if there is one, then its calls."""
    message, logprobs = choice["message"], choice["logprobs"]
    calls = message.get("tool_calls") or []
    output: list[dict[str, Any]] = []
    if message["content"] or not calls:
        text = {
            "type": "output_text",
            "text": message["content"] or "",
            "annotations": [],
            "logprobs": logprobs["content"] if logprobs else [],
        }
        output.append(
            {
                "id": f"msg_{response_id}",
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [text],
            }
        )
    output += [
        {
            "id": f"fc_{response_id}_{number}",
            "type": "function_call",
            "status": status,
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for number, call in enumerate(calls)
    ]
    return output


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
