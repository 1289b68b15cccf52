"""Calls `cpu_layers.c`, what layers do between their matrix products; beside each its twin in torch.

All tensors are fp32 on the CPU, [rows, width] and contiguous unless said otherwise.
"""

from ctypes import CDLL, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch

from kernels.cpu_library import load_library

SOURCE = Path(__file__).with_suffix(".c")
# Rows are quantized to whole numbers of -127 to 127, stored as 1 to 255 around this.
MIDDLE = 128
LEVELS = 127


class CpuLayers:
    """The compiled kernels. Raises CompilerMissing where they cannot be built into `folder`."""

    def __init__(self, folder: Path) -> None:
        library = load_library(SOURCE, folder)
        rows = (c_int64, c_int64)
        self._rms_norm = _function(library, "rms_norm", (c_void_p,) * 3, rows, (c_float,))
        self._silu_gate = _function(library, "silu_gate", (c_void_p,) * 3, rows)
        self._rotate = _function(library, "rotate", (c_void_p,) * 4, (c_int64,) * 5)
        self._quantize_rows = _function(library, "quantize_rows", (c_void_p,) * 3, rows)
        self._scale_rows = _function(library, "scale_rows", (c_void_p,) * 3, rows)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [..., width] over the root of its mean square, times weight [width]."""
        y = torch.empty_like(x)
        width = x.shape[-1]
        self._rms_norm(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // width, width, eps, _threads()
        )
        return y

    def silu_gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, of any shape."""
        y = torch.empty_like(gate)
        width = gate.shape[-1]
        self._silu_gate(
            gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel() // width, width, _threads()
        )
        return y

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [rows, heads, dim], only each head's elements side by side; cos and sin [rows, dim]."""
        y = x.new_empty(x.shape)
        self._rotate(
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), *x.shape, *x.stride()[:2], _threads()
        )
        return y

    def quantize_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x as uint8 [rows, width] around MIDDLE, and the scales fp32 [rows]."""
        q, scale = torch.empty(x.shape, dtype=torch.uint8), x.new_empty(x.shape[0])
        self._quantize_rows(x.data_ptr(), q.data_ptr(), scale.data_ptr(), *x.shape, _threads())
        return q, scale

    def scale_rows(self, y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        """y * scale [rows] + bias [width], in place."""
        pointer = None if bias is None else bias.data_ptr()
        self._scale_rows(y.data_ptr(), scale.data_ptr(), pointer, *y.shape, _threads())


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's twin."""
    most = x.abs().amax(dim=-1, keepdim=True)
    factor = torch.where(most > 0, LEVELS / most, 0.0)
    return (torch.round(x * factor) + MIDDLE).to(torch.uint8), (most / LEVELS)[:, 0]


def scale_rows(y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
    """The kernel's twin."""
    y.mul_(scale[:, None])
    if bias is not None:
        y.add_(bias)


def _function(library: CDLL, name: str, *argument_types: tuple[type, ...]):
    function = library[name]
    function.argtypes = (*(kind for kinds in argument_types for kind in kinds), c_int)
    function.restype = None
    return function


def _threads() -> int:
    return torch.get_num_threads()
