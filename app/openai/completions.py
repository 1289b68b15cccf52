"""/v1/completions: a body to the engine's words, a completion to a response body."""

from typing import Any

import numpy as np

from app.openai.body import (
    BodyError,
    BodyRefused,
    Json,
    Translated,
    TranslationContext,
    boolean,
    integer,
    optional,
    refuse,
    required,
    string,
    wrong_type,
)
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
from engine.request import Completion, TokenIds

DEFAULT_MAX_TOKENS = 16

_KNOWN = COMMON_HONOURED | COMMON_IGNORED | {"prompt"}

_UNSUPPORTED = COMMON_UNSUPPORTED | {
    "logprobs": Unsupported(integer(0, 5)),
    "echo": Unsupported(boolean, (False,)),
    "best_of": Unsupported(integer(0, 20), (1,)),
    "suffix": Unsupported(string),
}


def parse_completion(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The body as a request of the engine, or the 400 it deserves."""
    try:
        return _parse(body, context, seed_key)
    except BodyRefused as refused:
        return refused.error


def _parse(body: Json, context: TranslationContext, seed_key: str) -> Translated:
    check_parameters(body, _KNOWN, _UNSUPPORTED)
    model = required(body, "model", string)
    prompt_ids = _read_prompt(body, context)
    max_tokens = optional(body, "max_tokens", integer(1), DEFAULT_MAX_TOKENS)
    max_tokens = bound_output(len(prompt_ids), max_tokens, context, param="prompt")
    sampling = read_sampling(
        body, max_tokens=max_tokens, vocab_size=context.tokenizer.vocab_size, seed_key=seed_key
    )
    return Translated(model, prompt_ids, sampling)


def _read_prompt(body: Json, context: TranslationContext) -> TokenIds:
    prompt = required(body, "prompt", _one_prompt)
    if not prompt:
        refuse("Invalid 'prompt': the prompt must not be empty.", "prompt", "invalid_value")
    if isinstance(prompt, str):
        prompt_ids = context.tokenizer.encode(prompt)
        if not len(prompt_ids):
            refuse("Invalid 'prompt': the prompt holds no tokens.", "prompt", "invalid_value")
        return prompt_ids
    vocab_size = context.tokenizer.vocab_size
    for i, token_id in enumerate(prompt):
        if not 0 <= token_id < vocab_size:
            param = f"prompt[{i}]"
            refuse(
                f"Invalid '{param}': {token_id} is no token id of this model (0 to {vocab_size - 1}).",
                param,
                "invalid_value",
            )
    return np.array(prompt, dtype=np.int32)


def _one_prompt(param: str, value: object) -> str | list[int]:
    """Text or token ids. Lists of prompts are known, but not run."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong_type(param, "a string or an array of token ids", value)
    if value and isinstance(value[0], str | list):
        refuse(
            "Unsupported parameter: 'prompt' takes one prompt a line here, not an array of prompts.",
            param,
            "unsupported_parameter",
        )
    for i, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int):
            wrong_type(f"{param}[{i}]", "an integer", item)
    return value


def completion_body(
    completion: Completion, *, response_id: str, created: int, model: str, fingerprint: str
) -> dict[str, Any]:
    """The response body of one text completion. `created` is in unix seconds."""
    return {
        "id": f"cmpl-{response_id}",
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "text": completion.text,
                "logprobs": None,
                "finish_reason": completion.finish_reason.value,
            }
        ],
        "usage": usage_body(completion),
        "system_fingerprint": fingerprint,
    }
