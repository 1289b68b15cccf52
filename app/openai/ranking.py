"""/v1/score and /v1/rerank, extensions with the shapes of other engines: how well texts go together.

The score of two texts is the cosine of their embeddings; a model that generates is asked (judging.py).
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from app.openai.body import (
    BodyError,
    BodyRefused,
    EmbeddingForm,
    Json,
    Translated,
    TranslationContext,
    array,
    boolean,
    integer,
    optional,
    refuse,
    required,
    string,
    wrong_type,
)
from app.openai.embeddings import (
    NO_OUTPUT,
    UNSUPPORTED,
    check_count,
    scaled,
    text_ids,
    text_usage,
    vectors_of,
)
from app.openai.judging import Named, judge_pairs, yes_shares
from app.openai.parameters import check_parameters
from engine.request import Completion

_SCORE = frozenset({"model", "text_1", "text_2", "user"})
_RERANK = frozenset({"model", "query", "documents", "top_n", "return_documents", "user"})


def parse_score(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The texts of `text_1`, then those of `text_2`; or a chat for each pair."""
    try:
        check_parameters(body, _SCORE, UNSUPPORTED)
        model = required(body, "model", string)
        first = required(body, "text_1", _texts)
        second = required(body, "text_2", _texts)
        if len(first) not in (1, len(second)):
            refuse(
                f"Invalid 'text_1': expected one text, or as many as in 'text_2' ({len(second)}), but got "
                f"{len(first)} instead.",
                "text_1",
                "invalid_value",
            )
        return _compared(model, first, second, EmbeddingForm(num_queries=len(first)), context)
    except BodyRefused as refused:
        return refused.error


def parse_rerank(body: Json, context: TranslationContext, *, seed_key: str) -> Translated | BodyError:
    """The query, then the documents; or a chat for each document."""
    try:
        check_parameters(body, _RERANK, UNSUPPORTED)
        model = required(body, "model", string)
        query = required(body, "query", string)
        documents = required(body, "documents", _documents)
        top_n = optional(body, "top_n", integer(1), None)
        is_shown = optional(body, "return_documents", boolean, False)
        shown = tuple(text for _, text in documents) if is_shown else None
        form = EmbeddingForm(num_queries=1, top_n=top_n, documents=shown)
        return _compared(model, [("query", query)], documents, form, context)
    except BodyRefused as refused:
        return refused.error


def _compared(
    model: str,
    queries: Sequence[Named],
    texts: Sequence[Named],
    form: EmbeddingForm,
    context: TranslationContext,
) -> Translated:
    """Each query with its text; one query goes with all."""
    if context.embedding_size is None:
        return judge_pairs(model, zip(cycle(queries), texts), form, context)
    return Translated(model, text_ids([*queries, *texts], context), NO_OUTPUT, embedding=form)


def _texts(param: str, value: object) -> list[Named]:
    if isinstance(value, str):
        return [(param, value)]
    if not isinstance(value, list):
        wrong_type(param, "a string or an array of strings", value)
    return _strings(param, value)


def _documents(param: str, value: object) -> list[Named]:
    """Strings, or objects with a `text`."""
    items = array(param, value)
    return _strings(param, [item.get("text") if isinstance(item, dict) else item for item in items])


def _strings(param: str, items: Sequence[object]) -> list[Named]:
    if not items:
        refuse(f"Invalid '{param}': it must not be empty.", param, "invalid_value")
    check_count(param, items)
    named = ((f"{param}[{i}]", item) for i, item in enumerate(items))
    return [(name, string(name, item)) for name, item in named]


def score_body(
    asked: Translated,
    completions: Sequence[Completion],
    *,
    response_id: str,
    created: int,
    fingerprint: str,
) -> dict[str, Any]:
    """A score for each text of `text_2`, in their order."""
    scores = enumerate(_scores(asked, completions))
    return {
        "id": f"score-{response_id}",
        "object": "list",
        "created": created,
        "model": asked.model,
        "data": [{"index": index, "object": "score", "score": score} for index, score in scores],
        "usage": text_usage(asked, completions),
    }


def rerank_body(
    asked: Translated,
    completions: Sequence[Completion],
    *,
    response_id: str,
    created: int,
    fingerprint: str,
) -> dict[str, Any]:
    """The documents by relevance, highest first; of equals the one that came first."""
    form = asked.embedding
    assert form is not None
    scores = _scores(asked, completions)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: form.top_n]
    return {
        "id": f"rerank-{response_id}",
        "model": asked.model,
        "results": [
            {
                "index": index,
                "relevance_score": scores[index],
                **({} if form.documents is None else {"document": {"text": form.documents[index]}}),
            }
            for index in order
        ],
        "usage": text_usage(asked, completions),
    }


def _scores(asked: Translated, completions: Sequence[Completion]) -> list[float]:
    """Of each text with its query; cosines where there are embeddings."""
    if asked.num_yes:
        return yes_shares(asked, completions)
    assert asked.embedding is not None
    vectors = scaled(vectors_of(completions)).astype(np.float64)
    num_queries = asked.embedding.num_queries
    cosines: list[float] = (vectors[:num_queries] * vectors[num_queries:]).sum(axis=1).clip(-1, 1).tolist()
    return cosines
