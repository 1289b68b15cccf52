"""The import rules, checked where they bite: in a fresh interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "triton", "kernels", "tokenizers"}
TORCH = {"torch", "transformers", "triton", "kernels"}


def _modules_loaded_by(*modules: str) -> set[str]:
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["app.main", "app.keeper", "app.cli"])
def test_web_keeper_and_command_line_start_without_model_code(module):
    loaded = _modules_loaded_by(module)
    assert module in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "engine.planning.planner",
        "engine.memory.pages",
        "engine.scheduling.scheduler",
        "engine.simulation",
        "engine.hardware",
        "engine.config",
        "engine.errors",
    ],
)
def test_deciding_needs_numbers_only(module):
    assert not _modules_loaded_by(module) & TORCH


def test_kernels_package_is_empty():
    """transformers looks for a package of this name and imports ours; it must find nothing there."""
    assert Path(importlib.util.find_spec("kernels").origin).read_text() == ""


def test_import_contracts_hold():
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
