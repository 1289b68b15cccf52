"""Builds and calls `cpu_attention.c`, attention of one step's layer on the CPU.

The library is built once for each machine, with its own compiler and for its own processor, and kept. It has
no OpenMP runtime of its own but uses torch's: two would hold two sets of threads that wait for each other.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import Structure, c_float, c_int64, c_void_p
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".c")
MAX_LANES = 64  # most rows times query heads of a KV head in one block
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-std=gnu11"]


class CompilerMissing(Exception):
    """No library can be built here; the message says why."""


class Step(Structure):
    """What the layers of one window share; the columns are contiguous int32 and outlive the calls."""

    _fields_ = (
        *((name, c_int64) for name in ("num_rows", "num_blocks", "page_size", "num_threads")),
        *((name, c_void_p) for name in ("positions", "slots", "block_row_start", "block_row_end")),
        *(
            (name, c_void_p)
            for name in ("block_item_start", "block_items", "row_start", "row_end", "segment")
        ),
        *((name, c_void_p) for name in ("kv_start", "kv_end", "kv_position", "page_start", "page_ids")),
    )


class Layer(Structure):
    """One layer's sizes, tensors and the strides of its rows and heads, in floats."""

    _fields_ = (
        *((name, c_int64) for name in ("num_query_heads", "num_kv_heads", "key_dim", "value_dim")),
        *((name, c_void_p) for name in ("query", "key", "value")),
        *(
            (name, c_int64)
            for name in ("query_row", "query_head", "key_row", "key_head", "value_row", "value_head")
        ),
        *((name, c_void_p) for name in ("keys", "values", "output", "sinks")),
        ("window", c_int64),
        ("scaling", c_float),
        ("soft_cap", c_float),
    )


Attend = Callable[[Step, Layer], None]


def layer(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    *,
    scaling: float,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    window: int | None,
) -> Layer:
    """query [T, Hq, D], key [T, Hkv, D] and value [T, Hkv, Dv], each head's elements side by side; the pool's
    keys [slots, Hkv, D] and values [slots, Hkv, Dv], output [T, Hq, Dv] and sinks [Hq] contiguous; all fp32,
    Dv even, Hq / Hkv at most MAX_LANES."""
    return Layer(
        query.shape[1], key.shape[1], key.shape[2], value.shape[2],
        query.data_ptr(), key.data_ptr(), value.data_ptr(),
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        keys.data_ptr(), values.data_ptr(), output.data_ptr(), None if sinks is None else sinks.data_ptr(),
        window or 0, scaling, soft_cap or 0.0,
    )  # fmt: skip


def load(folder: Path) -> Attend:
    """The kernel, built into `folder` unless it is there. Raises CompilerMissing."""
    library = _build(folder)
    openmp = _loaded_openmp()
    ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
    function = ctypes.CDLL(str(library)).prefix_attention
    function.argtypes = (ctypes.POINTER(Step), ctypes.POINTER(Layer))

    def attend(step: Step, layer: Layer) -> None:
        if function(ctypes.byref(step), ctypes.byref(layer)):
            raise MemoryError("no memory for attention on the CPU")

    return attend


def _build(folder: Path) -> Path:
    compiler = os.environ.get("CC", "cc")
    try:
        version = _run([compiler, "--version"])
        target = folder / f"cpu_attention-{_digest(version)}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as building:
                compiled, linked = Path(building, "kernel.o"), Path(building, "kernel.so")
                _run([compiler, *_FLAGS, "-c", str(SOURCE), "-o", str(compiled)])
                _run([compiler, "-shared", str(compiled), "-lm", "-o", str(linked)])  # OpenMP stays open
                linked.replace(target)
    except OSError as error:
        raise CompilerMissing(f"{compiler}: {error.strerror or error}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or [f"exit code {error.returncode}"]
        raise CompilerMissing(f"{compiler}: {said[0]}") from error
    return target


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _digest(compiler_version: str) -> str:
    """Of all that the library depends on: a cache may be shared by unlike machines."""
    parts = [SOURCE.read_text(), " ".join(_FLAGS), compiler_version, platform.machine()]
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        lines = processor.read_text().splitlines()
        parts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _loaded_openmp() -> str:
    """The OpenMP runtime that torch has loaded."""
    maps = Path("/proc/self/maps")
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    for path in sorted(paths):
        if Path(path).name.startswith(("libgomp", "libiomp", "libomp")):
            return path
    raise CompilerMissing("torch runs here without an OpenMP runtime that could be shared")
