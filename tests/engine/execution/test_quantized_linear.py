"""int8 linear layers: near the plain ones, and a row's result is its own."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.cache_dir import default_cache_dir
from engine.execution.packed_linear import PackedLinear
from engine.execution.quantized_linear import QuantizedLinear, quantize_linear_layers, weight_levels
from kernels import cpu_layers
from tests.models import tiny_config


@pytest.fixture(scope="module", params=["compiled", "torch"])
def operators(request):
    return (
        cpu_layers.CpuLayers(default_cache_dir() / "kernels") if request.param == "compiled" else cpu_layers
    )


def tiny_llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config()).eval().requires_grad_(False)


@pytest.mark.parametrize("num_rows", [0, 1, 3, 64, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_is_near_the_plain_layer(operators, num_rows, bias):
    linear = torch.nn.Linear(576, 80, bias=bias)
    x = torch.randn(1, num_rows, 576)
    with torch.inference_mode():
        y, expected = QuantizedLinear(linear, operators)(x), linear(x)
    assert y.shape == expected.shape
    # Rounding to 127 levels of a row's and a channel's maximum gives 1 % here, to 63 of the latter 1.2 %.
    assert (y - expected).norm() <= 0.02 * expected.norm()


def test_whole_numbers_are_exact(operators):
    """Rows and weights that need no rounding, at the ends of their ranges: nothing overflows on the way."""
    linear = torch.nn.Linear(1536, 64, bias=False)
    with torch.inference_mode():
        levels = float(weight_levels())
        linear.weight.copy_(torch.where(torch.rand(64, 1536) < 0.5, -levels, levels))
        linear.weight[::2] = levels
        x = torch.where(torch.rand(40, 1536) < 0.5, -127.0, 127.0)
        x[::2] = 127.0
        y = QuantizedLinear(linear, operators)(x)
        torch.testing.assert_close(y, (x.double() @ linear.weight.double().t()).float(), rtol=1e-6, atol=0.1)


@pytest.mark.parametrize("shape", [(576, 192), (576, 1536), (1536, 576), (48, 320)])
def test_a_rows_bits_do_not_depend_on_its_neighbours(operators, shape):
    inputs, outputs = shape
    with torch.inference_mode():
        layer = QuantizedLinear(torch.nn.Linear(inputs, outputs), operators)
        row = torch.randn(1, inputs)
        alone = layer(row)
        for num_rows in (2, 16, 64, 100, 1024):
            among = torch.randn(num_rows, inputs) * 1e4
            among[num_rows // 2] = row
            assert torch.equal(layer(among)[num_rows // 2], alone[0])


def test_every_linear_layer_is_quantized_and_the_embedding_stays(operators):
    model = tiny_llama()
    embedding = model.get_input_embeddings()
    before = copy.deepcopy(embedding.weight)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        quantize_linear_layers(model, operators)
        assert not any(isinstance(module, torch.nn.Linear | PackedLinear) for module in model.modules())
        assert torch.equal(embedding.weight, before)
        assert (model(ids).logits - expected).norm() <= 0.1 * expected.norm()


def test_a_layer_that_rounding_hurts_stays_in_fp32(operators):
    """A norm blows one channel up, which the layer behind it ignores: all that counts is rounded off."""
    model = tiny_llama()
    hurt = model.model.layers[1]
    hurt.input_layernorm.weight[3] = 1e4
    hurt.self_attn.v_proj.weight[:, 3] = 0
    quantize_linear_layers(model, operators)
    packed = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert packed == ["model.layers.1.self_attn.v_proj"]
