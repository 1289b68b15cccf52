from pathlib import Path

import pytest
import torch

from app.settings import load_settings
from engine.errors import ModelNotUsable
from engine.execution.model import load_model
from engine.execution.resolve import resolve_model
from engine.text.tokenizer import Tokenizer
from tests.engine.execution.packages import write_gguf
from tests.models import tiny_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_a_file_is_converted_once_by_its_content(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model_dir = resolve_model(str(checkpoint), tmp_path / "cache", said.append)
    moved = checkpoint.rename(tmp_path / "moved.gguf")
    assert resolve_model(str(moved), tmp_path / "cache", said.append) == model_dir
    assert len(said) == 1
    assert load_model(model_dir, torch.device("cpu"), torch.float32).num_layers == 2
    tokenizer, original = Tokenizer(model_dir), tiny_tokenizer()
    conversation = [{"role": "user", "content": "How many\n  42 tables?"}]
    expected = original.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert tokenizer.render_chat(conversation).tolist() == expected
    assert load_settings(model=str(moved)).served_models == ["moved"]


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "other", "cut"])
def test_a_broken_file_is_said(checkpoint: Path, tmp_path: Path, content: bytes | None) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ModelNotUsable, match="no whole GGUF file"):
        resolve_model(str(checkpoint), tmp_path / "cache")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [(b"llama", b"lamda", "cannot be converted"), (b"smollm", b"tekken", "tokenizer of type tekken")],
)
def test_what_cannot_be_converted_is_said(
    checkpoint: Path, tmp_path: Path, old: bytes, new: bytes, reason: str
) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes().replace(old, new))
    with pytest.raises(ModelNotUsable, match=reason):
        resolve_model(str(checkpoint), tmp_path / "cache")
