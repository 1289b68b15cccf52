"""The parameters of a request body, sorted as the contract sorts them: honoured, ignored, not supported.

Nothing that changes the text is dropped in silence: a parameter is honoured, or it has no effect on
the text, or it holds the value that asks for nothing, or the line is a 400.
"""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NoReturn

from app.openai.body import (
    Json,
    TranslationContext,
    anything,
    array,
    boolean,
    integer,
    json_object,
    number,
    optional,
    refuse,
    string,
    wrong_type,
)
from engine.request import Grammar, SamplingParams

MAX_STOP_STRINGS = 4
_INT32 = 2**31
_INT64 = 2**63
_UINT64 = 2**64
_MAX_ID_DIGITS = 10  # of a token id; longer numbers are not even parsed


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A parameter that is known but not honoured: only values that ask for nothing pass.

    read: checks type and range first, so that a wrong value is told as such.
    neutral: the values that leave the text as it is; null always does.
    """

    read: Callable[[str, object], object] = anything
    neutral: tuple[object, ...] = ()


# Honoured or named by both text endpoints.
COMMON_HONOURED = frozenset(
    {
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "seed",
        "stop",
        "n",
        "logprobs",
        # Extensions, by the names that other engines gave them.
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop_token_ids",
        "min_tokens",
        "ignore_eos",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
    }
)

# They say who asks, how to bill, what to cache, and which library to use: nothing about the text.
COMMON_IGNORED = frozenset({"user", "metadata", "store", "guided_decoding_backend"})

COMMON_UNSUPPORTED = {
    "stream": Unsupported(boolean, (False,)),
    "stream_options": Unsupported(json_object),
    "guided_whitespace_pattern": Unsupported(string),
}


def check_parameters(body: Json, known: Collection[str], unsupported: dict[str, Unsupported]) -> None:
    """Refuses the first parameter that is unknown, or that asks for what is not done here."""
    for name, value in body.items():
        rule = unsupported.get(name)
        if rule is None:
            if name not in known:
                refuse(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        elif value is not None and rule.read(name, value) not in rule.neutral:
            refuse(
                f"Unsupported parameter: '{name}' is not supported here with the value given.",
                name,
                "unsupported_parameter",
            )


def check_generates(model: str, context: TranslationContext) -> None:
    """Refuses a model that only embeds."""
    if context.embedding_size is not None:
        refuse(
            f"The model '{model}' generates no text; use /v1/embeddings, /v1/score or /v1/rerank with it.",
            "model",
            "unsupported_value",
        )


def read_sampling(
    body: Json,
    *,
    max_tokens: int,
    vocab_size: int,
    seed_key: str,
    top_logprobs: int | None,
    grammar: Grammar | None,
) -> SamplingParams:
    """How to choose tokens. `seed_key` names the request: it seeds one that brings no seed.

    top_logprobs, grammar: see SamplingParams; each endpoint has its own way to ask for them.
    """
    min_tokens = optional(body, "min_tokens", integer(0), 0)
    if min_tokens > max_tokens:
        refuse(
            f"Invalid 'min_tokens': {min_tokens} is more than the {max_tokens} tokens that this request may "
            "generate.",
            "min_tokens",
            "invalid_value",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=optional(body, "temperature", number(0, 2), 1.0),
        top_p=optional(body, "top_p", number(0, 1), 1.0),
        top_k=max(optional(body, "top_k", integer(-1, _INT32 - 1), 0), 0),
        min_p=optional(body, "min_p", number(0, 1), 0.0),
        frequency_penalty=optional(body, "frequency_penalty", number(-2, 2), 0.0),
        presence_penalty=optional(body, "presence_penalty", number(-2, 2), 0.0),
        repetition_penalty=optional(body, "repetition_penalty", number(0.01, 100), 1.0),
        logit_bias=optional(body, "logit_bias", _logit_bias(vocab_size), ()),
        seed=_read_seed(body, seed_key),
        stop=optional(body, "stop", _stop_strings, ()),
        stop_token_ids=optional(body, "stop_token_ids", _stop_token_ids(vocab_size), ()),
        min_tokens=min_tokens,
        ignore_eos=optional(body, "ignore_eos", boolean, False),
        top_logprobs=top_logprobs,
        grammar=grammar,
    )


def read_num_choices(body: Json) -> int:
    return optional(body, "n", integer(1, 128), 1)


def _read_seed(body: Json, seed_key: str) -> int:
    seed = optional(body, "seed", integer(-_INT64, _INT64 - 1), None)
    if seed is None:
        # From the request's name and not from a clock: a rerun after a crash gives the same text.
        digest = hashlib.blake2b(seed_key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1
    return seed % _UINT64  # the engine's seeds are unsigned


def _stop_strings(param: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        wrong_type(param, "a string or an array of strings", value)
    if not 1 <= len(value) <= MAX_STOP_STRINGS:
        refuse(
            f"Invalid '{param}': expected 1 to {MAX_STOP_STRINGS} strings, but got {len(value)} instead.",
            param,
            "invalid_value",
        )
    strings = tuple(string(f"{param}[{i}]", item) for i, item in enumerate(value))
    if "" in strings:
        refuse(f"Invalid '{param}': a stop string must not be empty.", param, "invalid_value")
    return strings


def token_id(param: str, value: object, vocab_size: int) -> int:
    """The value, if it is a token id of the model."""
    if isinstance(value, bool) or not isinstance(value, int):
        wrong_type(param, "an integer", value)
    if not 0 <= value < vocab_size:
        _not_a_token(param, value, vocab_size)
    return value


def _not_a_token(param: str, value: object, vocab_size: int) -> NoReturn:
    refuse(
        f"Invalid '{param}': {value} is no token id of this model (0 to {vocab_size - 1}).",
        param,
        "invalid_value",
    )


def _stop_token_ids(vocab_size: int) -> Callable[[str, object], tuple[int, ...]]:
    def read(param: str, value: object) -> tuple[int, ...]:
        items = enumerate(array(param, value))
        return tuple(token_id(f"{param}[{i}]", item, vocab_size) for i, item in items)

    return read


def _logit_bias(vocab_size: int) -> Callable[[str, object], tuple[tuple[int, float], ...]]:
    def read(param: str, value: object) -> tuple[tuple[int, float], ...]:
        pairs = json_object(param, value).items()
        biases = {_token_key(param, key, vocab_size): _bias(f"{param}.{key}", item) for key, item in pairs}
        return tuple(biases.items())

    return read


def _token_key(param: str, key: str, vocab_size: int) -> int:
    # Only the plain spelling, so that two keys never name one token.
    if not key.isascii() or not key.isdigit() or (len(key) > 1 and key[0] == "0"):
        refuse(
            f"Invalid '{param}': the key '{key}' is no token id; expected a string of digits.",
            param,
            "invalid_value",
        )
    if len(key) > _MAX_ID_DIGITS or int(key) >= vocab_size:
        _not_a_token(param, key, vocab_size)
    return int(key)


_bias = number(-100, 100)


def bound_output(
    num_prompt_tokens: int, max_tokens: int | None, context: TranslationContext, *, param: str
) -> int:
    """Most tokens to generate; refuses what outgrows the model's context, with the numbers.

    None: as much as the context still holds, at most the context's own default.
    """
    room = context.max_context - num_prompt_tokens
    too_long = f"This model's maximum context length here is {context.max_context} tokens. However, "
    if room < 1:
        refuse(
            f"{too_long}your {param} resulted in {num_prompt_tokens} tokens, which leaves none for the "
            f"completion. Please reduce the length of the {param}.",
            param,
            "context_length_exceeded",
        )
    if max_tokens is None:
        return min(room, context.default_max_tokens or room)
    if max_tokens > room:
        refuse(
            f"{too_long}you requested {num_prompt_tokens + max_tokens} tokens ({num_prompt_tokens} in the "
            f"{param}, {max_tokens} in the completion). Please reduce the length of the {param} or "
            "completion.",
            param,
            "context_length_exceeded",
        )
    return max_tokens
