"""/v1/chat/completions: a body to the engine's words, a completion to a response body."""

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
from app.openai.messages import read_messages
from app.openai.parameters import (
    COMMON_HONOURED,
    COMMON_IGNORED,
    COMMON_UNSUPPORTED,
    Unsupported,
    bound_output,
    check_parameters,
    read_sampling,
)
from app.openai.usage import usage_body
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
    }
)

_UNSUPPORTED = COMMON_UNSUPPORTED | {
    "logprobs": Unsupported(boolean, (False,)),
    "top_logprobs": Unsupported(integer(0, 20), (0,)),
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
    messages = required(body, "messages", read_messages)
    max_tokens = _read_max_tokens(body)
    try:
        prompt_ids = context.tokenizer.render_chat(messages)
    except ChatTemplateError as error:
        refuse(f"The model's chat template refuses this conversation: {error}", "messages", "invalid_value")
    max_tokens = bound_output(len(prompt_ids), max_tokens, context, param="messages")
    sampling = read_sampling(
        body, max_tokens=max_tokens, vocab_size=context.tokenizer.vocab_size, seed_key=seed_key
    )
    return Translated(model, prompt_ids, sampling)


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
    completion: Completion, *, response_id: str, created: int, model: str, fingerprint: str
) -> dict[str, Any]:
    """The response body of one chat completion. `created` is in unix seconds."""
    return {
        "id": f"chatcmpl-{response_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": completion.text,
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": completion.finish_reason.value,
            }
        ],
        "usage": usage_body(completion),
        "service_tier": "default",
        "system_fingerprint": fingerprint,
    }
