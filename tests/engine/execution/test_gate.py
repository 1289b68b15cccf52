"""Which architectures run on our attention and which are refused, on tiny random models."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.errors import ModelRefused
from engine.execution.gate import LayerFacts, check_config, check_model, probe_layers
from engine.execution.packed_linear import pack_linear_layers
from tests.models import REFUSED, tiny_config


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


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_compute_something_else_is_refused_with_the_reason(name: str) -> None:
    model_type, overrides, reason = REFUSED[name]
    with pytest.raises(ModelRefused, match=reason):
        gate(tiny_config(model_type, **overrides))


def test_the_probe_alone_finds_batch_dependent_frequencies() -> None:
    model_type, overrides, _ = REFUSED["phi3, longrope"]
    with pytest.raises(ModelRefused, match="packed together"):
        probe_layers(build(tiny_config(model_type, **overrides)))


def test_a_window_in_the_config_alone_changes_nothing() -> None:
    """phimoe's own mask knows the window; a stray one in a Llama's config does nothing, one as long as
    the context neither."""
    assert [layer.window for layer in gate(tiny_config("llama", sliding_window=16))] == [None] * 3
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    gate(tiny_config("phimoe", sliding_window=512, **experts))


def test_a_router_may_be_asked_for_the_type_of_its_weight() -> None:
    model = build(tiny_config("hunyuan_v1_moe", head_dim=8, num_experts=4, moe_topk=2))
    pack_linear_layers(model)
    assert len(probe_layers(model)) == 3
