"""/v1/completions: a body to the engine's words, completions to a response body."""

import math
from collections.abc import Sequence
from typing import Any

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
)
from app.openai.grammars import read_grammar
from app.openai.logprobs import completion_logprobs
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
from app.openai.prompts import Form, prompt_forms, prompt_ids
from app.openai.usage import usage_of
from engine.request import Completion, TokenIds

DEFAULT_MAX_TOKENS = 16
MAX_SAMPLES = 4096  # of one body, over all its prompts

_KNOWN = COMMON_HONOURED | COMMON_IGNORED | {"prompt", "best_of", "echo"}

_UNSUPPORTED = COMMON_UNSUPPORTED | {"suffix": Unsupported(string)}


def parse_completion(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The body as requests of the engine, or the 400 it deserves."""
    try:
        return _parse(body, context, seed_key)
    except BodyRefused as refused:
        return refused.error


def _parse(body: Json, context: TranslationContext, seed_key: str) -> Translated:
    check_parameters(body, _KNOWN, _UNSUPPORTED)
    model = required(body, "model", string)
    check_generates(model, context)
    prompts = required(body, "prompt", prompt_forms)
    num_choices, num_samples = _read_counts(body, len(prompts))
    logprobs = optional(body, "logprobs", integer(0, 5), None)
    echo = optional(body, "echo", boolean, False)
    if echo and logprobs is not None:
        refuse(
            "Unsupported parameter: 'echo' does not go with 'logprobs' here, since a prompt's tokens get no "
            "logprobs; leave one of them out.",
            "echo",
            "unsupported_parameter",
        )
    all_ids = tuple(prompt_ids(name, prompt, context) for name, prompt in prompts)
    max_tokens = optional(body, "max_tokens", integer(1), DEFAULT_MAX_TOKENS)
    max_tokens = bound_output(max(map(len, all_ids)), max_tokens, context, param="prompt")
    sampling = read_sampling(
        body,
        max_tokens=max_tokens,
        vocab_size=context.tokenizer.vocab_size,
        seed_key=seed_key,
        # The likeliest of many samples can be told by nothing else.
        top_logprobs=0 if logprobs is None and num_samples > num_choices else logprobs,
        grammar=read_grammar(body, context),
    )
    return Translated(
        model,
        all_ids,
        sampling,
        num_samples=num_samples,
        num_choices=num_choices,
        has_logprobs=logprobs is not None,
        echo=tuple(_echo(prompt, ids, context) for (_, prompt), ids in zip(prompts, all_ids, strict=True))
        if echo
        else (),
    )


def _read_counts(body: Json, num_prompts: int) -> tuple[int, int]:
    """Choices and samples of each prompt."""
    num_choices = read_num_choices(body)
    best_of = optional(body, "best_of", integer(0, 20), 0) or num_choices
    if best_of < num_choices:
        refuse(
            f"Invalid 'best_of': it must not be less than 'n', but got {best_of} and {num_choices}.",
            "best_of",
            "invalid_value",
        )
    if num_prompts * best_of > MAX_SAMPLES:
        refuse(
            f"Invalid 'prompt': {num_prompts} prompts with {best_of} completions each are more than the "
            f"{MAX_SAMPLES} completions that one request may ask for; use several requests.",
            "prompt",
            "invalid_value",
        )
    return num_choices, best_of


def _echo(prompt: Form, token_ids: TokenIds, context: TranslationContext) -> str:
    return prompt if isinstance(prompt, str) else context.tokenizer.decode(token_ids)


def completion_body(
    asked: Translated,
    completions: Sequence[Completion],
    *,
    response_id: str,
    created: int,
    fingerprint: str,
) -> dict[str, Any]:
    """The response body of text completions. `created` is in unix seconds."""
    chosen = [
        (text, completion)
        for number, text in enumerate(asked.echo or [""] * len(asked.prompts))
        for completion in _best(
            completions[number * asked.num_samples : (number + 1) * asked.num_samples], asked.num_choices
        )
    ]
    return {
        "id": f"cmpl-{response_id}",
        "object": "text_completion",
        "created": created,
        "model": asked.model,
        "choices": [
            {
                "index": index,
                "text": text + completion.text,
                "logprobs": completion_logprobs(completion.logprobs or ()) if asked.has_logprobs else None,
                "finish_reason": completion.finish_reason.value,
            }
            for index, (text, completion) in enumerate(chosen)
        ],
        "usage": usage_of(asked, completions).as_body(),
        "system_fingerprint": fingerprint,
    }


def _best(samples: Sequence[Completion], num_choices: int) -> Sequence[Completion]:
    """The samples with the highest log probability per token, highest first; as they are if all are asked."""
    if num_choices == len(samples):
        return samples
    return sorted(samples, key=_mean_logprob, reverse=True)[:num_choices]


def _mean_logprob(completion: Completion) -> float:
    logprobs = [token.logprob for token in completion.logprobs or ()]
    return math.fsum(logprobs) / len(logprobs) if logprobs else -math.inf
