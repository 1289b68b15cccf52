"""What is fused computes what transformers' own modules compute."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama

from engine.cache_dir import default_cache_dir
from engine.execution.fused_layers import FusedGate, FusedNorm, fuse_layers
from kernels.cpu_layers import CpuLayers
from tests.models import ARCHITECTURES, VOCAB_SIZE, tiny_config


@pytest.fixture(scope="module")
def kernels():
    return CpuLayers(default_cache_dir() / "kernels")


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model_type, overrides = ARCHITECTURES[name]
    return AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides), dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma3", "phi3, partial rope", "mixtral", "gpt_oss, sinks"]
)
def test_logits_stay(kernels, name):
    model = build(name)
    fused = copy.deepcopy(model)
    fuse_layers(fused, kernels)
    ids = torch.randint(VOCAB_SIZE, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(fused(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    kinds = [type(module) for module in fused.modules()]
    assert not any(kind.__name__.endswith("RMSNorm") for kind in kinds)
    assert (FusedGate in kinds) == (name in ("llama", "qwen3"))  # the others gate otherwise
    assert FusedNorm in kinds


def test_the_original_rotation_is_left_where_it_differs(kernels):
    for name in ("llama", "gpt_oss, sinks"):
        fuse_layers(build(name), kernels)
    assert hasattr(modeling_llama.apply_rotary_pos_emb, "__wrapped__")
    assert not hasattr(modeling_gpt_oss.apply_rotary_pos_emb, "__wrapped__")


def test_a_rotation_equals_the_original(kernels):
    fuse_layers(build("llama"), kernels)
    q, k = torch.randn(1, 70, 6, 8).transpose(1, 2), torch.randn(1, 70, 2, 8).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 70, 8)
    rotation = modeling_llama.apply_rotary_pos_emb
    with torch.inference_mode():
        for ours, original in zip(
            rotation(q, k, cos, sin), rotation.__wrapped__(q, k, cos, sin), strict=True
        ):
            torch.testing.assert_close(ours, original, rtol=1e-6, atol=1e-6)


def test_a_module_that_computes_otherwise_stays(kernels):
    class OddNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x):
            return torch.nn.functional.layer_norm(x, (8,), self.weight, None, self.eps)

    model = torch.nn.Sequential(OddNorm())
    fuse_layers(model, kernels)
    assert type(model[0]) is OddNorm
