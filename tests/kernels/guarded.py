"""Buffers that show what a kernel touched: guard regions around each, poison inside."""

import torch

_GUARD = 1 << 14  # elements on either side


class GuardedMemory:
    """Gives out tensors between guard regions: NaN around floats, `int_guard` around integers."""

    def __init__(self, int_guard: int) -> None:
        self._int_guard = int_guard
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def poisoned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """All NaN."""
        return self._tensor(torch.full(shape, torch.nan, dtype=dtype))

    def copy(self, content: torch.Tensor) -> torch.Tensor:
        return self._tensor(content)

    def assert_guards_intact(self) -> None:
        """Nothing was written outside."""
        for buffer, before in self._buffers:
            for edge in (slice(None, _GUARD), slice(len(buffer) - _GUARD, None)):
                assert torch.equal(buffer[edge].nan_to_num(7.0), before[edge].nan_to_num(7.0))

    def _tensor(self, content: torch.Tensor) -> torch.Tensor:
        guard = torch.nan if content.dtype.is_floating_point else self._int_guard
        buffer = torch.full((content.numel() + 2 * _GUARD,), guard, dtype=content.dtype)
        inside = buffer[_GUARD : _GUARD + content.numel()].view(content.shape)
        inside.copy_(content)
        self._buffers.append((buffer, buffer.clone()))
        return inside
