"""Models that must not run end a command with one sentence and exit code 3."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.serve import EXIT_CANNOT_START
from tests.app.batches import chat, input_file
from tests.models import REFUSED, save_tiny_model, tiny_config


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_model_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    model_type, overrides, reason = REFUSED[name]
    model = save_tiny_model(tmp_path / "model", tiny_config(model_type, **overrides))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(input_file([chat("a")]))
    arguments = ["run", source, "-o", output, "--model", model, "--model-name", "m"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == EXIT_CANNOT_START == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"batchllm run: {model} cannot run here: ")
    assert reason in line
    assert {path.name for path in tmp_path.iterdir()} == {"model", "in.jsonl"}
