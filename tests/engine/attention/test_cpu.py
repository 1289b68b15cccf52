"""Which attention a CPU runs."""

import logging

import pytest
import torch

from engine.attention.compiled_backend import CompiledBackend
from engine.attention.cpu import cpu_backend
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.torch_backend import TorchBackend


def _backend(folder, *, dtype=torch.float32, value_dim=16, num_heads=4):
    pool = KVPool([KVShape(2, 16, value_dim)], 8, dtype, torch.device("cpu"))
    return cpu_backend(pool, 4, [None], [num_heads], folder)


def test_the_compiled_kernel_where_it_can_be_built(tmp_path):
    assert isinstance(_backend(tmp_path), CompiledBackend)


@pytest.mark.parametrize("layer", [{"dtype": torch.bfloat16}, {"value_dim": 15}, {"num_heads": 130}])
def test_torch_for_layers_that_it_cannot_do(tmp_path, layer):
    assert isinstance(_backend(tmp_path, **layer), TorchBackend)


def test_torch_where_no_compiler_is_and_it_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert isinstance(_backend(tmp_path), TorchBackend)
    assert "Install a C compiler" in caplog.text
