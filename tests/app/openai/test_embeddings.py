"""Bodies of /v1/embeddings, /v1/score and /v1/rerank: to texts of the engine, and vectors to bodies."""

import base64
from typing import Any

import numpy as np
import orjson
import pytest

from app.openai.body import BodyError, Translated, TranslationContext
from app.openai.endpoints import ENDPOINTS
from tests.fakes import ByteTokenizer, FakeEngine

MODEL = "minilm"
CONTEXT = TranslationContext(ByteTokenizer(), max_context=20, embedding_size=4, normalises=True)


def _read(endpoint: str, **fields: object) -> Translated | BodyError:
    return ENDPOINTS[endpoint].parse({"model": MODEL, **fields}, CONTEXT, seed_key="k")


def _answer(endpoint: str, **fields: object) -> dict[str, Any]:
    asked = _read(endpoint, **fields)
    assert isinstance(asked, Translated), asked
    engine = FakeEngine(embedding_size=4, per_step=5000)
    engine.add(asked.requests(range(asked.num_requests)))
    completions = sorted(engine.step(), key=lambda one: one.request_id)
    body = ENDPOINTS[endpoint].respond(asked, completions, response_id="1", created=7, fingerprint="fp")
    return dict(orjson.loads(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)))


def _unit(text: str, size: int = 4) -> np.ndarray:
    vector = np.resize(np.frombuffer(text.encode(), np.uint8), 4)[:size].astype(np.float32)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)
def test_every_form_of_input_in_its_order(given: object, texts: list[str]) -> None:
    body = _answer("/v1/embeddings", input=given)
    assert [item["index"] for item in body["data"]] == list(range(len(texts)))
    for item, text in zip(body["data"], texts, strict=True):
        np.testing.assert_allclose(item["embedding"], _unit(text), rtol=1e-6)
    num_tokens = sum(map(len, texts))
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert (body["object"], body["model"], body["data"][0]["object"]) == ("list", MODEL, "embedding")


def test_base64_is_little_endian_fp32() -> None:
    (item,) = _answer("/v1/embeddings", input="abc", encoding_format="base64")["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), _unit("abc"))


def test_fewer_dimensions_are_scaled_to_length_1_again() -> None:
    (item,) = _answer("/v1/embeddings", input="abc", dimensions=2)["data"]
    np.testing.assert_allclose(item["embedding"], _unit("abc", 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": [[]]}, "input[0]", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": ["a", 5]}, "input[1]", "invalid_type"),
        ({"input": [256]}, "input[0]", "invalid_value"),
        ({"input": ["a", "b" * 21]}, "input[1]", "context_length_exceeded"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": 5}, "dimensions", "invalid_value"),
        ({"input": "a", "temperature": 1}, "temperature", "unknown_parameter"),
        ({"input": "a", "stream": True}, "stream", "unsupported_parameter"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    error = _read("/v1/embeddings", **fields)
    assert isinstance(error, BodyError)
    assert (error.status, error.param, error.code) == (400, param, code)


def test_a_text_as_long_as_the_model_takes_and_2048_inputs_run() -> None:
    assert isinstance(_read("/v1/embeddings", input="b" * 20), Translated)
    assert isinstance(_read("/v1/embeddings", input=["a"] * 2048, user="me"), Translated)


def test_models_that_generate_do_not_embed_and_the_other_way_round() -> None:
    generating = TranslationContext(ByteTokenizer(), max_context=20)
    error = ENDPOINTS["/v1/embeddings"].parse({"model": MODEL, "input": "a"}, generating, seed_key="k")
    assert isinstance(error, BodyError)
    assert (error.param, error.code) == ("model", "unsupported_value")
    for endpoint, field in [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")]:
        value = "a" if field == "prompt" else [{"role": "user", "content": "a"}]
        error = _read(endpoint, **{field: value})
        assert isinstance(error, BodyError)
        assert (error.param, error.code) == ("model", "unsupported_value")


def test_scores_are_cosines() -> None:
    body = _answer("/v1/score", text_1="ab", text_2=["ab", "z!"])
    expected = [1.0, float(_unit("ab") @ _unit("z!"))]
    assert [item["score"] for item in body["data"]] == pytest.approx(expected, abs=1e-6)
    assert body["object"] == "list"
    pairs = _answer("/v1/score", text_1=["ab", "z!"], text_2=["q", "z!"])
    assert [item["score"] for item in pairs["data"]] == pytest.approx(
        [float(_unit("ab") @ _unit("q")), 1.0], abs=1e-6
    )
    assert pairs["usage"]["total_tokens"] == 7


def test_rerank_orders_documents() -> None:
    documents = ["z!", "ab", {"text": "a~"}, "ab"]
    body = _answer("/v1/rerank", query="ab", documents=documents, return_documents=True)
    assert [item["index"] for item in body["results"]] == [1, 3, 2, 0]
    assert [item["document"]["text"] for item in body["results"]] == ["ab", "ab", "a~", "z!"]
    scores = [item["relevance_score"] for item in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1)
    short = _answer("/v1/rerank", query="ab", documents=documents, top_n=2)
    assert [sorted(item) for item in short["results"]] == [["index", "relevance_score"]] * 2


@pytest.mark.parametrize(
    ("endpoint", "fields", "param", "code"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "invalid_value"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2", "invalid_value"),
        ("/v1/score", {"text_1": "a", "text_2": 1}, "text_2", "invalid_type"),
        ("/v1/score", {"text_1": "a" * 21, "text_2": "b"}, "text_1", "context_length_exceeded"),
        ("/v1/rerank", {"documents": ["a"]}, "query", "missing_required_parameter"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents", "invalid_value"),
        ("/v1/rerank", {"query": "a", "documents": ["a", 3]}, "documents[1]", "invalid_type"),
        ("/v1/rerank", {"query": "a", "documents": ["a", ""]}, "documents[1]", "invalid_value"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n", "invalid_value"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "rank": 0}, "rank", "unknown_parameter"),
    ],
)
def test_wrong_rankings_are_named(endpoint: str, fields: dict[str, Any], param: str, code: str) -> None:
    error = _read(endpoint, **fields)
    assert isinstance(error, BodyError)
    assert (error.param, error.code) == (param, code)
