"""Which attention a CPU runs: the compiled kernel where it can be built, torch's operators elsewhere."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.compiled_backend import CompiledBackend
from engine.attention.kv_pool import KVPool
from engine.attention.torch_backend import TorchBackend
from engine.cache_dir import default_cache_dir
from kernels import cpu_attention
from kernels.cpu_library import CompilerMissing

_log = logging.getLogger(__name__)


def cpu_backend(
    pool: KVPool,
    page_size: int,
    windows: Sequence[int | None],
    num_query_heads: Sequence[int],
    cache_dir: Path | None = None,
) -> AttentionBackend:
    """windows and num_query_heads: of each layer. cache_dir: where the kernel is kept, None: the default."""
    folder = (cache_dir or default_cache_dir()) / "kernels"
    if _suits(pool, num_query_heads) and (kernel := _kernel(folder)) is not None:
        return CompiledBackend(pool, page_size, windows, num_query_heads, kernel)
    return TorchBackend(pool, page_size, windows)


def _suits(pool: KVPool, num_query_heads: Sequence[int]) -> bool:
    layers = zip(pool.keys, pool.values, num_query_heads, strict=True)
    return all(
        keys.dtype is torch.float32
        and values.shape[2] % 2 == 0
        and heads // keys.shape[1] <= cpu_attention.MAX_LANES
        for keys, values, heads in layers
    )


@functools.cache
def _kernel(folder: Path) -> cpu_attention.Attend | None:
    try:
        return cpu_attention.load(folder)
    except CompilerMissing as missing:
        _log.warning(
            "Attention runs on torch's operators, at about half the speed: its own kernel could not be built "
            "(%s). Install a C compiler, such as gcc.",
            missing,
        )
        return None
