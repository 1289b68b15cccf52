"""/v1/chat/completions: a body to the engine's words, a completion to a response body."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

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
)
from app.openai.grammars import read_grammar
from app.openai.logprobs import chat_logprobs
from app.openai.messages import read_messages
from app.openai.parameters import (
    COMMON_HONOURED,
    COMMON_IGNORED,
    COMMON_UNSUPPORTED,
    Unsupported,
    bound_output,
    check_generates,
    check_parameters,
    read_num_choices,
    read_sampling,
)
from app.openai.tool_formats import Calling, ToolCall, read_calls
from app.openai.tools import Tools, plan_calling, read_tools
from app.openai.usage import usage_of
from engine.errors import ChatTemplateError
from engine.request import Completion, FinishReason, Grammar

_KNOWN = (
    COMMON_HONOURED
    | COMMON_IGNORED
    | {
        "messages",
        "max_completion_tokens",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "response_format",
        "safety_identifier",
        "service_tier",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)

_UNSUPPORTED = COMMON_UNSUPPORTED | {
    "functions": Unsupported(array, ([],)),
    "function_call": Unsupported(anything, ("none", "auto")),
    "reasoning_effort": Unsupported(string, ("none",)),
    "modalities": Unsupported(array, (["text"],)),
    "chat_template_kwargs": Unsupported(json_object, ({},)),
    "audio": Unsupported(),
    "moderation": Unsupported(),
    "prediction": Unsupported(),
    "verbosity": Unsupported(),
    "web_search_options": Unsupported(),
}


def parse_chat(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The body as a request of the engine, or the 400 it deserves."""
    try:
        return _parse(body, context, seed_key)
    except BodyRefused as refused:
        return refused.error


def _parse(body: Json, context: TranslationContext, seed_key: str) -> Translated:
    check_parameters(body, _KNOWN, _UNSUPPORTED)
    model = required(body, "model", string)
    check_generates(model, context)
    messages = required(body, "messages", read_messages)
    max_tokens = _read_max_tokens(body)
    tools = read_tools(body)
    calling = None if tools is None else plan_calling(tools, context)
    try:
        prompt_ids = context.tokenizer.render_chat(messages, None if tools is None else tools.for_template)
    except ChatTemplateError as error:
        refuse(f"The model's chat template refuses this conversation: {error}", "messages", "invalid_value")
    if calling is not None and calling.is_forced:
        prompt_ids = np.concatenate((prompt_ids, context.tokenizer.encode_markup(calling.form.opening)))
    max_tokens = bound_output(len(prompt_ids), max_tokens, context, param="messages")
    top_logprobs = _read_top_logprobs(body)
    num_choices = read_num_choices(body)
    return Translated(
        model,
        (prompt_ids,),
        read_sampling(
            body,
            max_tokens=max_tokens,
            vocab_size=context.tokenizer.vocab_size,
            seed_key=seed_key,
            top_logprobs=top_logprobs,
            grammar=_read_grammar(body, tools, calling, context),
        ),
        num_samples=num_choices,
        num_choices=num_choices,
        has_logprobs=top_logprobs is not None,
        calling=calling,
    )


def _read_grammar(
    body: Json, tools: Tools | None, calling: Calling | None, context: TranslationContext
) -> Grammar | None:
    """What the answer is held to: what the body says, or calls where they are forced."""
    grammar = read_grammar(body, context)
    if tools is None or calling is None:
        return grammar
    if grammar is not None:
        refuse(
            "Invalid 'tools': they do not go together with an output that is held to a format, since no call "
            "has that format; set 'tool_choice' to 'none', or leave one of them out.",
            "tools",
            "invalid_value",
        )
    if not calling.is_forced:
        return None
    if optional(body, "ignore_eos", boolean, False):
        refuse(
            "Invalid 'ignore_eos': it does not go together with calls that are forced.",
            "ignore_eos",
            "invalid_value",
        )
    return tools.grammar(calling.form)


def _read_top_logprobs(body: Json) -> int | None:
    """How many likeliest tokens to report beside each; None: no logprobs at all."""
    num_top = optional(body, "top_logprobs", integer(0, 20), None)
    if optional(body, "logprobs", boolean, False):
        return num_top or 0
    if num_top is not None:
        refuse(
            "Invalid 'top_logprobs': it needs 'logprobs' to be true.",
            "top_logprobs",
            "invalid_value",
        )
    return None


def _read_max_tokens(body: Json) -> int | None:
    """The bound under its new name or its old one."""
    old = optional(body, "max_tokens", integer(1), None)
    new = optional(body, "max_completion_tokens", integer(1), None)
    if old is not None and new is not None and old != new:
        refuse(
            "Invalid 'max_tokens': 'max_tokens' and 'max_completion_tokens' name the same bound and must "
            f"not differ, but got {old} and {new}.",
            "max_tokens",
            "invalid_value",
        )
    return old if new is None else new


def chat_body(
    asked: Translated,
    completions: Sequence[Completion],
    *,
    response_id: str,
    created: int,
    fingerprint: str,
) -> dict[str, Any]:
    """The response body of a chat. `created` is in unix seconds."""
    return {
        "id": f"chatcmpl-{response_id}",
        "object": "chat.completion",
        "created": created,
        "model": asked.model,
        "choices": [
            _choice(index, completion, asked, response_id) for index, completion in enumerate(completions)
        ],
        "usage": usage_of(asked, completions).as_body(),
        "service_tier": "default",
        "system_fingerprint": fingerprint,
    }


def _choice(index: int, completion: Completion, asked: Translated, response_id: str) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion.text,
        "refusal": None,
        "annotations": [],
    }
    finish_reason = completion.finish_reason.value
    if asked.calling is not None and (found := _calls_of(completion, asked.calling)) is not None:
        before, calls = found
        message["content"] = before or None
        message["tool_calls"] = [
            {
                "id": call_id(f"{response_id}:{index}:{number}"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(calls)
        ]
        if completion.finish_reason is FinishReason.STOP:
            finish_reason = "tool_calls"
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(completion.logprobs or ()) if asked.has_logprobs else None,
        "finish_reason": finish_reason,
    }


def _calls_of(completion: Completion, calling: Calling) -> tuple[str, list[ToolCall]] | None:
    """The text before the calls, and the calls; None if there are none."""
    has_marker = calling.is_forced or (
        calling.marker_id is not None and calling.marker_id in completion.output_ids
    )
    found = read_calls(completion.text, calling.form, calling.names, has_marker=has_marker)
    if found is None:
        return None
    before, calls = found
    return before, calls[:1] if calling.is_one else calls


def call_id(seed: str) -> str:
    """Nine letters and digits, which is the only form that Mistral's templates take back."""
    return hashlib.blake2b(seed.encode(), digest_size=5).hexdigest()[:9]
