"""Linear layers on the CPU with weights laid out once for the matrix kernel instead of at every call.

The gain is largest where rows are few, as in steps that only decode: with 64 rows of SmolLM2's layers
44 -> 58 GFLOP/s, its LM head with 8 rows 6 -> 42 GFLOP/s (two threads, see benchmarks/LOG.md).
"""

import torch

# Rows for which oneDNN chooses the layout; with 64 no count from 8 to 1,024 was slower than unpacked.
_ROWS_TO_PACK_FOR = 64


class PackedLinear(torch.nn.Module):
    """y = x W^T + b in fp32, as `linear` computes it up to rounding.

    Holds only the packed weight; `linear`'s own is left to whoever shares it (tied embeddings).
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._out_features = linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, _ROWS_TO_PACK_FOR)
        self._bias = linear.bias
        # Some models ask their router for its weight's type. A look at the numbers themselves is an error.
        self.weight = torch.empty_like(linear.weight, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] to [..., out_features]."""
        if x.numel() == 0:  # no row is sampled: oneDNN wants at least one
            return x.new_empty(*x.shape[:-1], self._out_features)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


@torch.inference_mode()
def pack_linear_layers(model: torch.nn.Module) -> None:
    """Replace every plain linear layer of an fp32 CPU model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, PackedLinear(child))
