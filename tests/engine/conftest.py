"""Models for the engine's tests: one tiny, one real."""

from pathlib import Path

import pytest
from hypothesis import settings

from engine.execution.resolve import DEFAULT_MODEL, resolve_model
from tests.models import save_tiny_model

settings.register_profile("no deadline", deadline=None)  # machines are busy; time is not what is tested
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights: grouped-query attention, tied embeddings (see tests/models.py)."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The default model, from the cache or the ways that `batchllm pull` knows."""
    return resolve_model(DEFAULT_MODEL)
