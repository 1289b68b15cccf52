"""The check for machines with a GPU, run without one: it must work the day a card is there."""

import json
import subprocess
import sys

from tests.models import save_tiny_model, tiny_config


def test_gpu_check_runs_on_the_interpreter(tmp_path):
    config = tiny_config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    model_dir = save_tiny_model(tmp_path / "model", config)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--small", "--model", str(model_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["device"] == "interpreter"
    assert report["tokens"]["same_tokens"] == report["tokens"]["requests"] > 0
    assert all(result["ms"] > 0 for result in report["speeds"])
    assert all("wrong" not in result for result in report["values"])
