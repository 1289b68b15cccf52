"""A .gguf file as a model: converted once into the cache, under the hash of its content."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from gguf import GGUFReader

from engine.errors import ModelNotUsable
from engine.execution.model_dir import is_usable

# Byte-level pre-tokenizers that the import renders right, and whether they split digits one by one first.
# Others cut text by patterns that it loses: tokens would differ from those that the model was trained on.
_SPLITS_DIGITS = {"smollm": True, "gpt-2": False}


def import_gguf(gguf_path: Path, models_dir: Path, report: Callable[[str], None]) -> Path:
    """The directory in `models_dir` that holds the checkpoint as safetensors, config and tokenizer.

    Calls at the same time are safe. Raises ModelNotUsable for a file that cannot be read or used.
    """
    split_digits = _splits_digits(gguf_path)
    with gguf_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    model_dir = models_dir / f"gguf-{digest[:32]}"
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(model_dir.with_name(f".{model_dir.name}.lock")):
            if not is_usable(model_dir):
                report(f"Converting {gguf_path} to safetensors, once")
                _convert(gguf_path, model_dir, split_digits)
    except OSError as error:
        raise ModelNotUsable(
            f"The model cache {models_dir} cannot be written ({error.strerror}): "
            "set BATCHLLM_CACHE_DIR to a folder that can."
        ) from error
    return model_dir


def _splits_digits(gguf_path: Path) -> bool:
    try:
        fields = GGUFReader(gguf_path).fields
        kind = fields["tokenizer.ggml.model"].contents()
        pre_tokenizer = fields["tokenizer.ggml.pre"].contents() if kind == "gpt2" else "gpt-2"
    except Exception as error:  # the reader trusts the file: a broken one raises whatever it comes upon
        raise ModelNotUsable(
            f"{gguf_path} is no whole GGUF file with a tokenizer: fetch it again."
        ) from error
    if pre_tokenizer not in _SPLITS_DIGITS:
        raise ModelNotUsable(
            f"{gguf_path} has a tokenizer of type {pre_tokenizer}, which cannot be converted faithfully: "
            "give the original model's directory."
        )
    return _SPLITS_DIGITS[pre_tokenizer]


def _convert(gguf_path: Path, model_dir: Path, split_digits: bool) -> None:
    # Imported here: deciding where a model is needs no torch.
    from engine.execution.gguf_import import convert_gguf

    with tempfile.TemporaryDirectory(dir=model_dir.parent, prefix=f".{model_dir.name}.partial-") as work:
        converted = Path(work) / "converted"
        try:
            convert_gguf(gguf_path, converted, split_digits=split_digits)
        except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's; transformers raises others for what it cannot read
            line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
            raise ModelNotUsable(
                f"{gguf_path} cannot be converted ({line}): give the original model's directory."
            ) from error
        os.replace(converted, model_dir)
