"""What a model directory must hold, checked by looking at the files: no torch, no reading of weights."""

import json
import struct
from pathlib import Path
from typing import Any

from engine.errors import ModelNotUsable

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check_model_dir(path: Path) -> None:
    """Raise ModelNotUsable unless `path` holds a config, whole safetensors weights and a tokenizer."""
    if not path.is_dir():
        raise ModelNotUsable(f"There is no model directory at {path}: give a directory or a hub id.")
    if not (path / "config.json").is_file():
        raise ModelNotUsable(f"{path} has no config.json: give a transformers model directory.")
    _read_json_object(path / "config.json")
    for file in _weight_files(path):
        _check_safetensors(file)
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelNotUsable(f"{path} has no tokenizer files: copy those of the original model into it.")


def is_usable(path: Path) -> bool:
    """Whether check_model_dir has nothing to say."""
    try:
        check_model_dir(path)
    except ModelNotUsable:
        return False
    return True


def _weight_files(path: Path) -> list[Path]:
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = _read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelNotUsable(f"{index} has no weight_map: fetch the model again.")
        return [path / name for name in sorted(set(weight_map.values()))]
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise ModelNotUsable(
            f"{path} holds pickled weights, which are never loaded (they may run code): "
            "save them as safetensors."
        )
    raise ModelNotUsable(f"{path} has no model.safetensors: fetch the model again, or convert it.")


def _check_safetensors(file: Path) -> None:
    """Compare the file's length with the one its header promises: finds cut and empty files."""
    if not file.is_file():
        raise ModelNotUsable(f"{file.parent} lacks the weight file {file.name}: fetch the model again.")
    num_bytes = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (header_bytes,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(header_bytes, num_bytes)))
        data_bytes = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ModelNotUsable(f"{file} is no safetensors file: fetch the model again.") from error
    if num_bytes != 8 + header_bytes + data_bytes:
        raise ModelNotUsable(
            f"{file} has {num_bytes} bytes where its header promises {8 + header_bytes + data_bytes}: "
            "fetch the model again."
        )


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelNotUsable(f"{file} is not valid JSON: fetch the model again.") from error
    if not isinstance(value, dict):
        raise ModelNotUsable(f"{file} holds no JSON object: fetch the model again.")
    return value
