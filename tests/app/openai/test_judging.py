"""/v1/score and /v1/rerank of a model that generates: a prompt a pair, and the share of yes."""

import math
from typing import Any

import numpy as np
import pytest

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.endpoints import ENDPOINTS
from engine.request import Completion, FinishReason, TokenIds, TokenLogprob
from tests.fakes import ByteTokenizer

WORDS = ["yes", "Yes", "no"]  # tokens of their own; their ids stand for no byte that a prompt has


class WordTokenizer(ByteTokenizer):
    """Begins every text with a token of its own, as many tokenizers do."""

    def encode(self, text: str) -> TokenIds:
        if text in WORDS:
            return np.array([2, 128 + WORDS.index(text)], dtype=np.int32)
        return np.concatenate([np.array([2], dtype=np.int32), super().encode(text)])


CONTEXT = TranslationContext(WordTokenizer(), max_context=200)


def parse(endpoint: str, **fields: Any) -> Translated | BodyError:
    return ENDPOINTS[endpoint].parse({"model": "m", **fields}, CONTEXT, seed_key="k")


def answer(endpoint: str, chances: list[tuple[float, float, float]], **fields: Any) -> dict[str, Any]:
    """chances: of each pair, of yes, Yes and no."""
    asked = parse(endpoint, **fields)
    assert isinstance(asked, Translated), asked
    completions = [
        Completion(
            index,
            np.zeros(1, dtype=np.int32),
            "",
            FinishReason.LENGTH,
            5,
            0,
            (TokenLogprob(b"x", -9.0, tuple((b"x", math.log(chance)) for chance in row), 0),),
        )
        for index, row in enumerate(chances)
    ]
    assert len(completions) == asked.num_requests
    return ENDPOINTS[endpoint].respond(asked, completions, response_id="1", created=7, fingerprint="fp")


def test_a_chat_for_each_pair_that_shares_all_up_to_the_document() -> None:
    asked = parse("/v1/rerank", query="why", documents=["a cat", {"text": "a dog"}])
    assert isinstance(asked, Translated)
    texts = [ByteTokenizer().decode(prompt[1:]) for prompt in asked.prompts]
    assert [("a cat" in text, "a dog" in text) for text in texts] == [(True, False), (False, True)]
    shared, _, _ = texts[0].partition("cat")
    assert texts[1].startswith(shared)
    assert "why" in shared
    sampling = asked.sampling
    assert (sampling.max_tokens, sampling.top_logprobs, sampling.logprobs_of) == (1, 0, (128, 129, 130))
    assert asked.num_yes == 2


def test_scores_are_the_share_of_yes() -> None:
    chances = [(0.2, 0.1, 0.1), (1e-300, 1e-300, 6e-300)]
    body = answer("/v1/score", chances, text_1="q", text_2=["a", "b"])
    assert [item["score"] for item in body["data"]] == pytest.approx([0.75, 0.25])
    pairs = parse("/v1/score", text_1=["q", "r"], text_2=["a", "b"])
    assert isinstance(pairs, Translated)
    assert ["Query: q" in ByteTokenizer().decode(ids) for ids in pairs.prompts] == [True, False]


def test_rerank_orders_by_them() -> None:
    chances = [(0.1, 0.1, 0.8), (0.5, 0.1, 0.1), (0.1, 0.1, 0.2)]
    body = answer("/v1/rerank", chances, query="q", documents=["a", "b", "c"], top_n=2)
    assert [item["index"] for item in body["results"]] == [1, 2]
    assert body["results"][1]["relevance_score"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("endpoint", "fields", "param", "code"),
    [
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query", "invalid_value"),
        ("/v1/rerank", {"query": "q", "documents": ["a", ""]}, "documents[1]", "invalid_value"),
        ("/v1/score", {"text_1": "q", "text_2": "a" * 200}, "text_2", "context_length_exceeded"),
    ],
)
def test_what_is_refused(endpoint: str, fields: dict[str, Any], param: str, code: str) -> None:
    error = parse(endpoint, **fields)
    assert isinstance(error, BodyError)
    assert (error.param, error.code) == (param, code)


def test_a_model_without_such_tokens_gives_no_scores() -> None:
    context = TranslationContext(ByteTokenizer(), max_context=200)
    body = {"model": "m", "text_1": "q", "text_2": "a"}
    error = ENDPOINTS["/v1/score"].parse(body, context, seed_key="k")
    assert isinstance(error, BodyError)
    assert (error.param, error.code) == ("model", "unsupported_value")
