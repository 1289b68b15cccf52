"""int8 linear layers: near the plain ones, and a row's result is its own."""

import copy

import pytest
import torch

from engine.cache_dir import default_cache_dir
from engine.execution.quantized_linear import QuantizedLinear, quantize_linear_layers, weight_levels
from kernels import cpu_layers


@pytest.fixture(scope="module", params=["compiled", "torch"])
def operators(request):
    return (
        cpu_layers.CpuLayers(default_cache_dir() / "kernels") if request.param == "compiled" else cpu_layers
    )


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
    embedding, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50, bias=False)
    head.weight = embedding.weight
    model = torch.nn.Sequential(embedding, torch.nn.Sequential(torch.nn.Linear(16, 16)), head).requires_grad_(
        False
    )
    before = copy.deepcopy(embedding.weight)
    quantize_linear_layers(model, operators)
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert torch.equal(embedding.weight, before)
    with torch.inference_mode():
        assert model(torch.arange(5)).shape == (5, 50)
