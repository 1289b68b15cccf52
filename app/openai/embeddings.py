"""/v1/embeddings: a body to texts of the engine, their vectors to a response body."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.openai.body import (
    BodyError,
    BodyRefused,
    EmbeddingForm,
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
from app.openai.parameters import Unsupported, check_parameters
from app.openai.prompts import Form, prompt_forms, prompt_ids
from app.openai.usage import usage_of
from engine.request import Completion, SamplingParams, TokenIds

MAX_INPUTS = 2048  # of one body

_KNOWN = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
UNSUPPORTED = {"stream": Unsupported(boolean, (False,))}
NO_OUTPUT = SamplingParams(max_tokens=0)

Vectors = NDArray[np.float32]


def parse_embeddings(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The inputs as texts of the engine, or the 400 that the body deserves."""
    try:
        return _parse(body, context)
    except BodyRefused as refused:
        return refused.error


def _parse(body: Json, context: TranslationContext) -> Translated:
    check_parameters(body, _KNOWN, UNSUPPORTED)
    model = embedding_model(body, context)
    inputs = required(body, "input", prompt_forms)
    check_count("input", inputs)
    form = EmbeddingForm(
        is_base64=optional(body, "encoding_format", _encoding, "float") == "base64",
        size=optional(body, "dimensions", integer(1, context.embedding_size), context.embedding_size),
        normalises=context.normalises,
    )
    return Translated(model, text_ids(inputs, context), NO_OUTPUT, embedding=form)


def embedding_model(body: Json, context: TranslationContext) -> str:
    """The body's model, if it embeds."""
    model = required(body, "model", string)
    if context.embedding_size is None:
        refuse(
            f"The model '{model}' generates text and has no embeddings; name an embedding model.",
            "model",
            "unsupported_value",
        )
    return model


def check_count(param: str, texts: Sequence[object]) -> None:
    if len(texts) > MAX_INPUTS:
        refuse(
            f"Invalid '{param}': expected at most {MAX_INPUTS} texts, but got {len(texts)} instead; use "
            "several requests.",
            param,
            "invalid_value",
        )


def text_ids(named: Iterable[tuple[str, Form]], context: TranslationContext) -> tuple[TokenIds, ...]:
    """The texts' tokens; each text with its place in the body."""
    texts = []
    for name, text in named:
        token_ids = prompt_ids(name, text, context)
        if len(token_ids) > context.max_context:
            refuse(
                f"This model's maximum context length here is {context.max_context} tokens. However, your "
                f"{name} resulted in {len(token_ids)} tokens. Please reduce its length: it is not cut.",
                name,
                "context_length_exceeded",
            )
        texts.append(token_ids)
    return tuple(texts)


def _encoding(param: str, value: object) -> str:
    if string(param, value) not in ("float", "base64"):
        refuse(
            f"Invalid '{param}': expected 'float' or 'base64', but got '{value}' instead.",
            param,
            "invalid_value",
        )
    return str(value)


def embeddings_body(
    asked: Translated,
    completions: Sequence[Completion],
    *,
    response_id: str,
    created: int,
    fingerprint: str,
) -> dict[str, Any]:
    """The response body; numbers as float32 arrays, which orjson writes as such, or as base64."""
    form = asked.embedding
    assert form is not None
    vectors = vectors_of(completions)
    shown = np.ascontiguousarray(vectors[:, : form.size])
    if form.normalises and shown.shape != vectors.shape:
        shown = scaled(shown)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if form.is_base64 else vector,
            }
            for index, vector in enumerate(shown)
        ],
        "model": asked.model,
        "usage": text_usage(asked, completions),
    }


def vectors_of(completions: Sequence[Completion]) -> Vectors:
    """float32 [completions, size]."""
    return np.stack([one.embedding for one in completions if one.embedding is not None])


def scaled(vectors: Vectors) -> Vectors:
    """To length 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return result


def text_usage(asked: Translated, completions: Sequence[Completion]) -> dict[str, int]:
    num_tokens = usage_of(asked, completions).prompt_tokens
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
