"""What layers do between their products: the compiled kernels against torch."""

import pytest
import torch

from engine.cache_dir import default_cache_dir
from kernels import cpu_layers

SHAPES = [(1, 8), (3, 48), (37, 576), (70, 1000)]  # the last two are shared out among threads


@pytest.fixture(scope="module")
def kernels():
    return cpu_layers.CpuLayers(default_cache_dir() / "kernels")


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(kernels, shape):
    x, weight = torch.randn(shape) * 20, torch.randn(shape[1])
    expected = torch.nn.functional.rms_norm(x.double(), shape[1:], weight.double(), 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_silu_gate(kernels, shape):
    gate, up = torch.randn(2, *shape) * 10
    gate[0, :4] = torch.tensor([0.0, -100.0, 100.0, -88.0])
    expected = torch.nn.functional.silu(gate.double()) * up.double()
    torch.testing.assert_close(kernels.silu_gate(gate, up).double(), expected, rtol=1e-6, atol=1e-6)


def test_rotate_reads_heads_wherever_they_lie(kernels):
    x = torch.randn(70, 5, 2, 32)[:, :, 1]
    cos, sin = torch.randn(2, 70, 32)
    swapped = torch.cat([-x[..., 16:], x[..., :16]], dim=-1)
    expected = x * cos[:, None] + swapped * sin[:, None]
    torch.testing.assert_close(kernels.rotate(x, cos, sin), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_become_whole_numbers_as_in_torch_and_back(kernels, shape):
    x = torch.randn(shape) * torch.rand(shape[0], 1) * 100
    x[0] = 0
    (q, scale), (twin_q, twin_scale) = kernels.quantize_rows(x), cpu_layers.quantize_rows(x)
    assert torch.equal(q, twin_q)
    assert torch.equal(scale, twin_scale)
    assert q.min() >= 1
    assert ((q.float() - cpu_layers.MIDDLE).abs().amax(dim=1)[1:] == cpu_layers.LEVELS).all()
    back = q.float() - cpu_layers.MIDDLE
    kernels.scale_rows(back, scale, None)
    assert ((back - x).abs() <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_scale_rows(kernels, with_bias):
    y, scale = torch.randn(70, 1000), torch.rand(70)
    bias = torch.randn(1000) if with_bias else None
    twin = y.clone()
    kernels.scale_rows(y, scale, bias)
    cpu_layers.scale_rows(twin, scale, bias)
    torch.testing.assert_close(y, twin, rtol=1e-6, atol=1e-6)
