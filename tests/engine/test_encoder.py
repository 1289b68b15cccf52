"""Embedding models: packed texts have the vectors that each has alone, and what would differ is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedConfig

from engine.build import build_engine
from engine.config import EngineConfig
from engine.encoder_engine import EncoderEngine
from engine.errors import ModelRefused
from engine.execution.embedding_config import EmbeddingConfig, Pooling, embedding_config
from engine.request import Request, SamplingParams, TokenIds
from tests.embedding_models import minilm_dir, save_tiny_encoder, tiny_encoder_config

NO_OUTPUT = SamplingParams(max_tokens=0)
LENGTHS = [3, 17, 3, 40, 1, 17, 3]


@pytest.fixture
def texts() -> list[TokenIds]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 300, length).astype(np.int32) for length in LENGTHS]


def _embed(engine: EncoderEngine, texts: list[TokenIds]) -> np.ndarray:
    assert not engine.add([Request(index, text, NO_OUTPUT) for index, text in enumerate(texts)])
    vectors = {}
    while engine.has_work:
        vectors |= {one.request_id: one.embedding for one in engine.step()}
    return np.stack([vectors[index] for index in range(len(texts))])


def _alone(path: Path, text: TokenIds, pooling: str) -> np.ndarray:
    """By transformers, without a word of ours."""
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = model(torch.from_numpy(text.astype(np.int64))[None]).last_hidden_state[0].numpy()
    return {"mean_tokens": hidden.mean(0), "cls_token": hidden[0], "lasttoken": hidden[-1]}[pooling]


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "electra"])
def test_packed_texts_have_the_vectors_of_each_alone(
    model_type: str, pooling: str, texts: list[TokenIds], tmp_path: Path
) -> None:
    save_tiny_encoder(tmp_path, tiny_encoder_config(model_type), pooling=pooling, normalises=False)
    engine = build_engine(EngineConfig(str(tmp_path), max_batch_tokens=32))
    expected = np.stack([_alone(tmp_path, text, pooling) for text in texts])
    np.testing.assert_allclose(_embed(engine, texts), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("model_type", "pooling"), [("qwen3", "lasttoken"), ("llama", "mean_tokens"), ("gpt2", "lasttoken")]
)
def test_decoders_give_the_vectors_of_sentence_transformers(
    model_type: str, pooling: str, tmp_path: Path
) -> None:
    """Such as Qwen3-Embedding: hidden states of a decoder, pooled as its files say."""
    from sentence_transformers import SentenceTransformer

    sizes = {"num_key_value_heads": 2, "head_dim": 8} if model_type != "gpt2" else {}
    save_tiny_encoder(tmp_path, tiny_encoder_config(model_type, **sizes), pooling=pooling)
    engine = build_engine(EngineConfig(str(tmp_path), max_batch_tokens=32))
    texts = ["The quick brown fox", "a", "How many tables are there?", "The quick", "What is the capital"]
    ours = _embed(engine, [engine.tokenizer.encode(text) for text in texts])
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_limits_and_sizes_are_the_models_own(tmp_path: Path) -> None:
    roberta = build_engine(EngineConfig(str(save_tiny_encoder(tmp_path, tiny_encoder_config("roberta")))))
    assert (roberta.max_context, roberta.embedding_size, roberta.normalises) == (62, 32, True)
    limited = build_engine(EngineConfig(str(save_tiny_encoder(tmp_path / "b", max_tokens=24))))
    assert limited.max_context == 24
    lengths = np.linalg.norm(_embed(limited, [np.array([5, 6, 7], np.int32)]), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny_encoder_config("t5"), "encoder-decoder"),
        (tiny_encoder_config("modernbert", local_attention=8, pad_token_id=0), "hides tokens"),
        (
            tiny_encoder_config(
                "qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=0
            ),
            "hides tokens",
        ),
        (
            tiny_encoder_config(
                "gpt_oss",
                num_key_value_heads=2,
                head_dim=8,
                num_local_experts=4,
                num_experts_per_tok=2,
                sliding_window=8,
                layer_types=["full_attention"] * 2,
            ),
            "sinks",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_that_are_no_such_encoder_are_refused(
    config: PreTrainedConfig, reason: str, tmp_path: Path
) -> None:
    save_tiny_encoder(tmp_path, config)
    with pytest.raises(ModelRefused, match=reason):
        build_engine(EngineConfig(str(tmp_path)))


def test_other_ways_to_make_a_vector_are_refused(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path, pooling="max_tokens")
    with pytest.raises(ModelRefused, match="pooled by max"):
        embedding_config(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')  # as newer versions write
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": false}')
    assert embedding_config(tmp_path) == EmbeddingConfig(Pooling.CLS, normalises=True, max_tokens=9)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(ModelRefused, match="lower case"):
        embedding_config(tmp_path)
    modules = (tmp_path / "modules.json").read_text()
    (tmp_path / "modules.json").write_text(modules.replace("Normalize", "Dense"))
    with pytest.raises(ModelRefused, match="Transformer, Pooling, Dense"):
        embedding_config(tmp_path)


def test_a_directory_without_modules_generates(tiny_llama_dir: Path) -> None:
    assert embedding_config(tiny_llama_dir) is None


class _Steps:
    """Stands for the model: a text's vector is its length; notes the lengths of each step."""

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def __call__(self, texts: list[TokenIds]) -> np.ndarray:
        self.lengths.append([len(text) for text in texts])
        return np.array([[len(text)] for text in texts], np.float32)


def _engine(steps: _Steps) -> EncoderEngine:
    return EncoderEngine(
        embed=steps,
        tokenizer=None,  # type: ignore[arg-type]  # nobody asks for it
        max_context=100,
        embedding_size=1,
        normalises=False,
        max_batch_tokens=20,
    )


def test_steps_are_alike_in_length_and_within_the_budget(texts: list[TokenIds]) -> None:
    steps = _Steps()
    vectors = _embed(_engine(steps), texts)
    assert vectors[:, 0].tolist() == LENGTHS
    assert steps.lengths == [[40], [17], [17, 3], [3, 3, 1]]


def test_equal_texts_of_a_step_are_computed_once() -> None:
    steps = _Steps()
    engine = _engine(steps)
    engine.add([Request(index, np.array([7, 8], np.int32), NO_OUTPUT) for index in range(50)])
    completions = engine.step()
    assert steps.lengths == [[2]]
    assert sorted(one.request_id for one in completions) == list(range(50))
    assert sorted(one.num_cached_tokens for one in completions) == [0] + [2] * 49
    assert (engine.stats.prompt_tokens, engine.stats.computed_prompt_tokens) == (100, 2)


def test_priority_goes_first_and_what_is_dropped_does_not_run(texts: list[TokenIds]) -> None:
    steps = _Steps()
    engine = _engine(steps)
    engine.add([Request(index, text, NO_OUTPUT) for index, text in enumerate(texts)])
    engine.add([Request(100, np.arange(20, dtype=np.int32), NO_OUTPUT)], priority=1)
    engine.drop([3, 999])
    assert [one.request_id for one in engine.step()] == [100]
    assert 40 not in [length for step in steps.lengths for length in step]


def test_tenants_of_equal_priority_have_equal_shares() -> None:
    engine = _engine(_Steps())

    def add(tenant: str, first_id: int, count: int) -> None:
        texts = [np.arange(index, index + 10, dtype=np.int32) for index in range(count)]
        engine.add([Request(first_id + i, text, NO_OUTPUT) for i, text in enumerate(texts)], tenant=tenant)

    add("a", 0, 20)
    assert {one.request_id < 100 for one in engine.step()} == {True}
    add("b", 100, 4)
    owners = []
    while engine.has_work:
        owners.append({"a" if one.request_id < 100 else "b" for one in engine.step()})
    assert all(len(owner) == 1 for owner in owners)
    assert [owner.pop() for owner in owners[:4]].count("b") == 2
    assert engine.load.used_kv_bytes == 0


@pytest.mark.long
def test_minilm_gives_the_vectors_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    path = minilm_dir()
    engine = build_engine(EngineConfig(str(path)))
    words = [
        "the",
        "capital",
        "of",
        "France",
        "Paris",
        "naïve",
        "漢字",
        "résumé",
        "12345",
        "[SEP]",
        "disestablish",
    ]
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(300)]
    texts = [text for text in texts if len(engine.tokenizer.encode(text)) <= engine.max_context]
    assert len(texts) > 250
    assert engine.max_context == 256
    ours = _embed(engine, [engine.tokenizer.encode(text) for text in texts])
    theirs = SentenceTransformer(str(path), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
