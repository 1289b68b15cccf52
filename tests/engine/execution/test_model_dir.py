import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import ModelNotUsable
from engine.execution.model_dir import check_model_dir, is_usable
from tests.models import save_tiny_model


def cut_weights(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def pickle_weights(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def lose_a_shard(path: Path) -> None:
    (path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").write_text('{"model_type": '), "not valid JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "no JSON object"),
        (cut_weights, "bytes where its header promises"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "no safetensors file"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 64), "no safetensors file"),
        (lambda path: (path / "model.safetensors").unlink(), "no model.safetensors"),
        (pickle_weights, "pickled weights, which are never loaded"),
        (lose_a_shard, "lacks the weight file model-00001-of-00002.safetensors"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer files"),
    ],
)
def test_a_damaged_directory_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    save_tiny_model(tmp_path)
    assert is_usable(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelNotUsable, match=reason):
        check_model_dir(tmp_path)
    assert not is_usable(tmp_path)


def test_no_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelNotUsable, match="no model directory"):
        check_model_dir(tmp_path / "nowhere")
