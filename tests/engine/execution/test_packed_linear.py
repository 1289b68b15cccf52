"""Packed linear layers compute what plain ones do."""

import copy

import pytest
import torch

from engine.execution.packed_linear import PackedLinear, pack_linear_layers


@pytest.mark.parametrize("num_rows", [0, 1, 3, 64, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_layer(num_rows, bias):
    linear = torch.nn.Linear(48, 80, bias=bias)
    x = torch.randn(1, num_rows, 48)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


def test_every_linear_layer_is_packed_and_shared_weights_stay():
    embedding, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50, bias=False)
    head.weight = embedding.weight
    model = torch.nn.Sequential(embedding, torch.nn.Sequential(torch.nn.Linear(16, 16)), head).requires_grad_(
        False
    )
    expected = copy.deepcopy(model)(torch.arange(5))
    pack_linear_layers(model)
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
    torch.testing.assert_close(model(torch.arange(5)), expected)
