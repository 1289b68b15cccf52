"""What a model directory says about making one vector of a text's hidden states, as sentence-transformers
writes it down: modules.json, the pooling module's config.json, sentence_bert_config.json."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.errors import ModelNotUsable, ModelRefused

_MODULES = "modules.json"


class Pooling(StrEnum):
    MEAN = "mean"  # of all tokens
    CLS = "cls"  # the first token's
    LAST = "lasttoken"  # the last token's


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """normalises: whether vectors are scaled to length 1. max_tokens: of a text; None: all positions."""

    pooling: Pooling
    normalises: bool
    max_tokens: int | None


def embedding_config(model_dir: Path) -> EmbeddingConfig | None:
    """None: the model says nothing about embeddings, and so generates text.

    Raises ModelNotUsable for what cannot be read, ModelRefused for what is not done here.
    """
    if not (model_dir / _MODULES).is_file():
        return None
    modules = _read(model_dir / _MODULES)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelRefused(
            f"its {_MODULES} asks for {', '.join(kinds) or 'nothing'}; only Transformer, Pooling and, as the "
            "last, Normalize can run here."
        )
    limits = model_dir / "sentence_bert_config.json"
    limit = _read(limits) if limits.is_file() else {}
    if limit.get("do_lower_case"):
        raise ModelRefused(
            f"its {limits.name} asks for lower case beside the tokenizer, which is not done here."
        )
    pooling = _pooling(_read(model_dir / str(modules[1].get("path", "")) / "config.json"))
    return EmbeddingConfig(pooling, normalises="Normalize" in kinds, max_tokens=limit.get("max_seq_length"))


def _pooling(config: dict[str, Any]) -> Pooling:
    mode = config.get("pooling_mode")  # how newer versions write it
    prefix = "pooling_mode_"
    chosen = [str(mode)] if mode else [key.removeprefix(prefix) for key in config if config[key] is True]
    chosen = [
        name.removesuffix("_tokens").removesuffix("_token") for name in chosen if name != "include_prompt"
    ]
    if len(chosen) != 1 or chosen[0] not in set(Pooling):
        raise ModelRefused(
            f"its texts are pooled by {' and '.join(chosen) or 'nothing'}; only mean, cls and lasttoken, "
            "one of them, can run here."
        )
    return Pooling(chosen[0])


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{file} is missing or no JSON: fetch the model again.") from error
