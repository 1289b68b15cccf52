"""Builds the C files of this folder into libraries for the machine they run on, and loads them.

A library is built once for each machine, with its own compiler and for its own processor, and kept. It has
no OpenMP runtime of its own but uses torch's: two would hold two sets of threads that wait for each other.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-std=gnu11"]


class CompilerMissing(Exception):
    """No library can be built here; the message says why."""


def load_library(source: Path, folder: Path) -> ctypes.CDLL:
    """The C file `source`, built into `folder` unless it is there. Raises CompilerMissing."""
    library = _build(source, folder)
    openmp = _loaded_openmp()
    ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library))


def _build(source: Path, folder: Path) -> Path:
    compiler = os.environ.get("CC", "cc")
    try:
        version = _run([compiler, "--version"])
        target = folder / f"{source.stem}-{_digest(source, version)}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as building:
                compiled, linked = Path(building, "kernel.o"), Path(building, "kernel.so")
                _run([compiler, *_FLAGS, "-c", str(source), "-o", str(compiled)])
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


def _digest(source: Path, compiler_version: str) -> str:
    """Of all that the library depends on: a cache may be shared by unlike machines."""
    parts = [source.read_text(), " ".join(_FLAGS), compiler_version, platform.machine()]
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
