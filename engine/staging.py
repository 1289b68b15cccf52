"""A step's columns to the device, in one copy that the host does not wait for."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT_BYTES = 16  # of each column: Triton compiles a kernel anew for pointers that are not


def to_device(
    columns: Sequence[NDArray[np.integer]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Each column (any shape) as a tensor of `dtype` on the device, all of them views of one buffer."""
    step = _ALIGNMENT_BYTES // dtype.itemsize
    starts = np.cumsum([0] + [-(-column.size // step) * step for column in columns]).tolist()
    # Pinned memory comes from torch's cache and goes back to it once the copy is done.
    packed = torch.empty(starts[-1], dtype=dtype, pin_memory=device.type == "cuda")
    host = packed.numpy()
    for column, start in zip(columns, starts, strict=False):
        host[start : start + column.size] = column.ravel()
    on_device = packed.to(device, non_blocking=True)
    return [
        on_device[start : start + column.size].view(column.shape)
        for column, start in zip(columns, starts, strict=False)
    ]
