from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attention.interface import STEP_KWARG
from engine.attention.kv_pool import KVShape
from engine.errors import ModelNotUsable, ModelRefused
from engine.execution.model import load_model
from tests.models import save_tiny_model, tiny_config

CPU = torch.device("cpu")


class CausalStep:
    """An attention step for one prompt: full causal attention by torch's own function."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        soft_cap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        heads = [rows.transpose(0, 1)[None] for rows in (query, key, value)]
        output = torch.nn.functional.scaled_dot_product_attention(
            *heads, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output[0].transpose(0, 1)


def test_a_loaded_model_says_its_shapes_and_runs_on_a_step(tiny_llama_dir: Path) -> None:
    loaded = load_model(tiny_llama_dir, CPU, torch.float32)
    assert loaded.kv_shapes == (KVShape(2, 8, 8),) * 3
    assert loaded.windows == (None, None, None)
    assert loaded.num_query_heads == (6, 6, 6)
    assert (loaded.num_layers, loaded.max_context, loaded.vocab_size) == (3, 512, 320)
    assert not loaded.model.training

    ids, positions = torch.arange(10)[None] + 5, torch.arange(10)[None]
    kept = torch.tensor([3, 9])
    arguments: dict[str, Any] = {"logits_to_keep": kept, "use_cache": False, STEP_KWARG: CausalStep()}
    ours = loaded.model(input_ids=ids, position_ids=positions, **arguments).logits
    loaded.model.set_attn_implementation("eager")
    eager = loaded.model(input_ids=ids).logits[:, kept]
    torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_the_gate(tiny_llama_dir: Path, dtype: torch.dtype) -> None:
    assert load_model(tiny_llama_dir, CPU, dtype).model.dtype == dtype


def test_a_refused_architecture_says_why(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    save_tiny_model(tmp_path, tiny_config(rope_parameters=rope))
    with pytest.raises(ModelRefused, match="rotary frequencies of type dynamic"):
        load_model(tmp_path, CPU, torch.float32)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no_such_model"'))
    with pytest.raises(ModelRefused, match="no_such_model"):
        load_model(tmp_path, CPU, torch.float32)


def test_missing_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(ModelNotUsable, match="lacks 9 weights"):
        load_model(tmp_path, CPU, torch.float32)


def test_a_foreign_kernels_package_stops_the_start(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "kernels-0.11.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.11.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelNotUsable, match="pip uninstall kernels"):
        load_model(tiny_llama_dir, CPU, torch.float32)


def test_the_real_model_loads(smollm2_dir: Path) -> None:
    loaded = load_model(smollm2_dir, CPU, torch.float32)
    assert loaded.kv_shapes == (KVShape(3, 64, 64),) * 30
    assert (loaded.max_context, loaded.vocab_size) == (8192, 49152)
