"""/v1/chat/completions: a body to the engine's words, a completion to a response body."""

from collections.abc import Sequence
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
)
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
from app.openai.usage import usage_of
from engine.errors import ChatTemplateError
from engine.request import Completion

_KNOWN = (
    COMMON_HONOURED
    | COMMON_IGNORED
    | {
        "messages",
        "max_completion_tokens",
        "parallel_tool_calls",  # says nothing where there are no tools
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "top_logprobs",
    }
)

_UNSUPPORTED = COMMON_UNSUPPORTED | {
    "response_format": Unsupported(json_object, ({"type": "text"},)),
    "tools": Unsupported(array, ([],)),
    "tool_choice": Unsupported(anything, ("none", "auto")),
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
    try:
        prompt_ids = context.tokenizer.render_chat(messages)
    except ChatTemplateError as error:
        refuse(f"The model's chat template refuses this conversation: {error}", "messages", "invalid_value")
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
        ),
        num_samples=num_choices,
        num_choices=num_choices,
        has_logprobs=top_logprobs is not None,
    )


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
        "choices": [_choice(index, completion, asked) for index, completion in enumerate(completions)],
        "usage": usage_of(asked, completions).as_body(),
        "service_tier": "default",
        "system_fingerprint": fingerprint,
    }


def _choice(index: int, completion: Completion, asked: Translated) -> dict[str, Any]:
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": completion.text,
            "refusal": None,
            "annotations": [],
        },
        "logprobs": chat_logprobs(completion.logprobs or ()) if asked.has_logprobs else None,
        "finish_reason": completion.finish_reason.value,
    }
