"""Small models with random weights, saved as real model directories: real code, no download.

Weights are drawn wide enough that attention and every layer matter to the logits; with the usual
tiny spread, a model that ignored its attention would still seem right.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCAB_SIZE = 320
EOS_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", EOS_TOKEN]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_CORPUS = [
    "The quick brown fox jumps over the lazy dog. How many tables are there in the database?",
    "What is the capital of France? The capital of France is Paris.",
]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


_SLIDING, _FULL = "sliding_attention", "full_attention"
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}

# Architectures that have to run: name -> (model type, overrides). Windows are shorter than the prompts of
# the tests that use them. 8 dimensions a head everywhere, so that KV of a token has the same size.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, some layers sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, sliding": ("mistral", {"sliding_window": 16}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "layer_types": [_SLIDING, _SLIDING, _FULL],
        },
    ),
    "phi3": ("phi3", {}),
    "phi3, sliding": ("phi3", {"sliding_window": 16}),
    "phi3, partial rope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 8, "moe_intermediate_size": 32, **_EXPERTS}),
    "mixtral": ("mixtral", _EXPERTS),
    "gemma2, soft cap": (
        "gemma2",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "attn_logit_softcapping": 2.0},
    ),
    "gpt_oss, sinks": ("gpt_oss", {"head_dim": 8, "sliding_window": 16, **_EXPERTS}),
}

_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 128,
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

# Architectures that must not run: name -> (model type, overrides, words of the reason).
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama, dynamic NTK": ("llama", {"rope_parameters": _DYNAMIC}, "type dynamic"),
    "llama, longrope": ("llama", {"rope_parameters": _LONGROPE}, "type longrope"),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 128},
        "type longrope",
    ),
    "llama4": ("llama4_text", {"head_dim": 8, "num_local_experts": 2}, "chunked_attention"),
    "qwen3_next": ("qwen3_next", {"head_dim": 8, "num_experts": 4}, "linear_attention"),
    "lfm2": ("lfm2", {"layer_types": ["conv", "conv", "full_attention"]}, "conv"),
    "bloom, alibi": ("bloom", {"n_head": 6, "n_layer": 3}, "attention interface"),
    "falcon, alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}, "attention interface"),
    "falcon, rope": ("falcon", {"alibi": False, "new_decoder_architecture": False}, "attention interface"),
    "phimoe, hidden window": ("phimoe", {"sliding_window": 16, **_EXPERTS}, "do not hand to attention"),
    "nemotron": ("nemotron", {}, "keyword arguments"),
    "bert": ("bert", {}, "only decoders"),
    "modernbert": ("modernbert", {"layer_types": [_FULL] * 3}, "only decoders"),
    "t5": ("t5", {}, "encoder-decoder"),
    "bart": ("bart", {}, "encoder-decoder"),
}


def tiny_config(model_type: str = "llama", **overrides: Any) -> PreTrainedConfig:
    """A config of this architecture with 3 layers, 6 query heads and 2 KV heads of 8 (grouped-query),
    512 positions and tied embeddings, unless overridden."""
    return AutoConfig.for_model(model_type, **{**_COMMON, **overrides})


def save_tiny_model(path: Path, config: PreTrainedConfig | None = None, seed: int = 0) -> Path:
    """Write a model directory with random fp32 weights and a byte-level tokenizer; returns `path`."""
    torch.manual_seed(seed)
    config = config or tiny_config()
    generates = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    model_class = AutoModelForCausalLM if generates else AutoModel
    model_class.from_config(config, dtype=torch.float32).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 320 tokens (every byte is one of them), ChatML template, eos <|im_end|>."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS_TOKEN, bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
