"""Linear layers on the CPU with int8 weights, one scale per output channel, and int8 rows, one scale each.

A row's scale is its own maximum, so nothing in the step but the row itself decides what becomes of it; the
whole numbers' products are summed exactly, whatever rows stand beside it. PyTorch's own dynamic quantization
has one scale for all rows: one outlier among them takes the others' precision. A layer that rounding hurts
most, as a few tokens at load tell, stays in fp32.
"""

import functools
from typing import Protocol

import torch
from transformers import PreTrainedModel

from engine.execution.packed_linear import PackedLinear
from kernels import cpu_layers

_WEIGHT_LEVELS = (127, 63)  # the finer where the processor sums products of its size without overflow

# Error of the first row over that row, as norms: more keeps a layer in fp32. The first row is rounded worst,
# and all later ones attend to it. Of SmolLM2's products 28 % stay so (benchmarks/LOG.md).
_MOST_ERROR = 0.04
_PROBE_TOKENS = 32  # at random: they have the same outliers in a model's rows as text, and no data is needed


class RowOperators(Protocol):
    """What is computed before and after the product of whole numbers: compiled, or torch's operators."""

    def quantize_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def scale_rows(self, y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None: ...


class QuantizedLinear(torch.nn.Module):
    """y = x W^T + b of an fp32 `linear`, with W and each row of x rounded to int8.

    Holds the packed weight only; `linear`'s own is left to whoever shares it (tied embeddings).
    """

    def __init__(self, linear: torch.nn.Linear, operators: RowOperators) -> None:
        super().__init__()
        self._operators = operators
        self._out_features = linear.out_features
        scale = linear.weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / weight_levels()
        rounded = (linear.weight / scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._weight_scale = scale
        self._weight_zero = torch.zeros(len(scale), dtype=torch.int32)
        self._bias = linear.bias
        # Some models ask their router for its weight's type. A look at the numbers themselves is an error.
        self.weight = torch.empty_like(linear.weight, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x fp32 [..., in_features] to [..., out_features]."""
        if x.numel() == 0:  # no row is sampled: oneDNN wants at least one
            return x.new_empty(*x.shape[:-1], self._out_features)
        rows, scale = self._operators.quantize_rows(x.reshape(-1, x.shape[-1]).contiguous())
        y = _product(rows, self._weight, self._weight_scale, self._weight_zero)
        self._operators.scale_rows(y, scale, self._bias)
        return y.view(*x.shape[:-1], self._out_features)


@functools.cache
def weight_levels() -> int:
    """To how many whole numbers either side of zero weights are rounded: 63 on processors without VNNI, which
    sum pairs of products in 16 bits, else 127. Found out by the largest products there are."""
    inputs = 64
    rows = torch.full((1, inputs), 255, dtype=torch.uint8)
    levels = _WEIGHT_LEVELS[0]
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, inputs), levels, dtype=torch.int8), None)
    sums = _product(rows, weight, torch.ones(16), torch.zeros(16, dtype=torch.int32))
    is_exact = bool((sums == (255 - cpu_layers.MIDDLE) * levels * inputs).all())
    return levels if is_exact else _WEIGHT_LEVELS[1]


def _product(
    rows: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, weight_zero: torch.Tensor
) -> torch.Tensor:
    """(rows - MIDDLE) W^T times the channels' scales, fp32: rows uint8 [T, K], weight packed [N, K]."""
    y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, cpu_layers.MIDDLE, weight, weight_scale, weight_zero, None,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return y


@torch.inference_mode()
def quantize_linear_layers(model: PreTrainedModel, operators: RowOperators) -> None:
    """Replace every plain linear layer of an fp32 CPU model, the LM head among them."""
    rows = _rows_of_linear_layers(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                layer = QuantizedLinear(child, operators)
                is_near = child not in rows or _error(layer, child, rows[child]) <= _MOST_ERROR
                setattr(module, name, layer if is_near else PackedLinear(child))


def _rows_of_linear_layers(model: PreTrainedModel) -> dict[torch.nn.Module, torch.Tensor]:
    """What reaches each linear layer when the model, on eager attention, reads a few tokens."""
    rows: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows[module] = inputs[0]

    hooks = [
        module.register_forward_pre_hook(keep)
        for module in model.modules()
        if type(module) is torch.nn.Linear
    ]
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    model(input_ids=torch.randint(vocab_size, (1, _PROBE_TOKENS), generator=generator), use_cache=False)
    for hook in hooks:
        hook.remove()
    return rows


def _error(layer: QuantizedLinear, original: torch.nn.Linear, rows: torch.Tensor) -> float:
    expected = original(rows)
    errors = (layer(rows) - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(errors.nan_to_num().flatten()[:1].sum())  # no row, or one of zeros: no error
