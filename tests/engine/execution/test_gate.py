"""Which architectures run on our attention and which are refused, on tiny random models."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.errors import ModelRefused
from engine.execution.gate import LayerFacts, check_config, check_model, probe_layers
from tests.models import tiny_config


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def gate(config: Any) -> list[LayerFacts]:
    check_config(config)
    model = build(config)
    check_model(model)
    return probe_layers(model)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_full_attention_models_pass(model_type: str) -> None:
    layers = gate(tiny_config(model_type, head_dim=8))
    assert layers == [LayerFacts(6, 2, 8, 8, None)] * 3


def test_sliding_windows_are_reported() -> None:
    assert [layer.window for layer in gate(tiny_config("mistral", head_dim=8, sliding_window=4))] == [4] * 3


def test_windows_of_mixed_layers_are_reported() -> None:
    config = tiny_config("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert [layer.window for layer in gate(config)] == [None, 5, 5]


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}, "type dynamic"),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 128,
            },
            "type longrope",
        ),
    ],
)
def test_batch_dependent_rotary_frequencies_are_refused(rope: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason):
        gate(tiny_config("llama", rope_parameters=rope))


def test_the_probe_alone_finds_batch_dependent_frequencies() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 128,
    }
    config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=128)
    with pytest.raises(ModelRefused, match="packed together"):
        probe_layers(build(config))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: tiny_config("bloom", n_head=6, n_layer=3), "attention interface"),
        (lambda: tiny_config("falcon", alibi=False, new_decoder_architecture=False), "attention interface"),
        (lambda: tiny_config("llama4_text", head_dim=8, num_local_experts=2), "chunked_attention"),
        (lambda: tiny_config("qwen3_next", head_dim=8, num_experts=4), "linear_attention"),
        (lambda: tiny_config("lfm2", layer_types=["conv", "conv", "full_attention"]), "conv"),
        (lambda: tiny_config("t5"), "encoder-decoder"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(config: Any, reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason):
        gate(config())
