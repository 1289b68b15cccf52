"""Norms, gates and rotations of transformers' decoders in one pass each, instead of one per operator.

A module is replaced only where it is seen to compute the same: original and replacement are run on random
rows. So architectures whose norms or activations differ keep their own, and what is replaced is what
transformers computes, up to rounding.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

from kernels.cpu_layers import CpuLayers

_ROWS = 5  # of the comparison
_RTOL, _ATOL = 1e-5, 1e-5

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class FusedNorm(torch.nn.Module):
    """x over the root of its mean square, times weight."""

    def __init__(self, weight: torch.Tensor, eps: float, kernels: CpuLayers) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self._eps = eps
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernels.rms_norm(x.contiguous(), self.weight, self._eps)


class FusedGate(torch.nn.Module):
    """down(silu(gate(x)) * up(x)), of the linear layers of another module."""

    def __init__(self, mlp: Any, kernels: CpuLayers) -> None:
        super().__init__()
        self.gate_proj: torch.nn.Module = mlp.gate_proj
        self.up_proj: torch.nn.Module = mlp.up_proj
        self.down_proj: torch.nn.Module = mlp.down_proj
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = self._kernels.silu_gate(self.gate_proj(x).contiguous(), self.up_proj(x).contiguous())
        down: torch.Tensor = self.down_proj(gated)
        return down


@torch.inference_mode()
def fuse_layers(model: torch.nn.Module, kernels: CpuLayers) -> None:
    """Replace what can be replaced in an fp32 CPU model whose linear layers are still torch's own."""
    gates: dict[tuple[Any, ...], bool] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if (norm := _fused_norm(child, kernels)) is not None:
                setattr(module, name, norm)
            elif _has_gate(child):
                kind = (type(child), type(child.act_fn))  # all of a kind compute alike: one is compared
                if kind not in gates:
                    width = child.get_parameter("gate_proj.weight").shape[1]
                    gates[kind] = _same(child, FusedGate(child, kernels), width)
                if gates[kind]:
                    setattr(module, name, FusedGate(child, kernels))
    for name in {type(module).__module__ for module in model.modules()}:
        _fuse_rotation(sys.modules[name], kernels)


def _fused_norm(module: torch.nn.Module, kernels: CpuLayers) -> FusedNorm | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if not isinstance(eps, float) or len(parameters) != 1 or weight is None or weight.dim() != 1:
        return None
    for offset in (0, 1):  # Gemma stores how far its weight is from one
        norm = FusedNorm(weight + offset if offset else weight, eps, kernels)
        if _same(module, norm, len(weight)):
            return norm
    return None


def _has_gate(module: torch.nn.Module) -> bool:
    children = dict(module.named_children())
    linear = [children.get(name) for name in ("gate_proj", "up_proj", "down_proj")]
    return all(type(layer) is torch.nn.Linear for layer in linear) and hasattr(module, "act_fn")


def _same(original: torch.nn.Module, replacement: torch.nn.Module, width: int) -> bool:
    x = torch.randn(1, _ROWS, width, generator=torch.Generator().manual_seed(0))
    try:
        expected = original(x)
    except Exception:  # foreign code that wants to be called in another way
        return False
    return isinstance(expected, torch.Tensor) and torch.allclose(replacement(x), expected, _RTOL, _ATOL)


def _fuse_rotation(modeling: Any, kernels: CpuLayers) -> None:
    """Replace the function by which all attention layers of a file of transformers rotate q and k.

    It is a global of that file, so the replacement serves every model of the architecture in this process:
    fp32 rows on the CPU in inference mode take the kernel, all else the original.
    """
    original = getattr(modeling, "apply_rotary_pos_emb", None)
    if original is None or hasattr(original, "__wrapped__") or not _rotates_as_ours(original, kernels):
        return
    modeling.apply_rotary_pos_emb = _fused_rotation(original, kernels)


def _fused_rotation(original: Rotation, kernels: CpuLayers) -> Rotation:
    @functools.wraps(original)
    def rotation(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if rest or named or not torch.is_inference_mode_enabled() or not _suits(q, k, cos, sin):
            return original(q, k, cos, sin, *rest, **named)
        cos, sin = cos[0].contiguous(), sin[0].contiguous()
        q, k = (kernels.rotate(x[0].transpose(0, 1), cos, sin).transpose(0, 1)[None] for x in (q, k))
        return q, k

    return rotation


def _suits(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    return all(
        x.dtype is torch.float32 and x.is_cpu and x.shape[0] == 1 and x.stride(-1) == 1 for x in (q, k)
    ) and all(x.dtype is torch.float32 and x.shape == (1, q.shape[2], q.shape[3]) for x in (cos, sin))


def _rotates_as_ours(original: Rotation, kernels: CpuLayers) -> bool:
    if list(inspect.signature(original).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, _ROWS, heads, 16, generator=random).transpose(1, 2) for heads in (3, 1))
    cos, sin = torch.randn(2, 1, _ROWS, 16, generator=random)
    try:
        expected = original(q, k, cos, sin)
    except Exception:  # foreign code that wants to be called in another way
        return False
    found = _fused_rotation(original, kernels)(q, k, cos, sin)
    return all(
        torch.allclose(ours, theirs, _RTOL, _ATOL) for ours, theirs in zip(found, expected, strict=True)
    )
