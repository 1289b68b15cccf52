"""Every architecture of tests/models.py gives the tokens of transformers' `generate`, in fp32."""

from pathlib import Path

import numpy as np
import pytest

from engine.config import EngineConfig
from tests.engine.exactness import Prompt, assert_same_but_for_ties, generate_alone, run_together
from tests.models import ARCHITECTURES, save_tiny_model, tiny_config

NUM_OUTPUT_TOKENS = 12
MAX_BATCH_TOKENS = 24
PAGE_SIZE, NUM_PAGES = 4, 34
KV_BYTES_PER_TOKEN = 3 * 2 * (8 + 8) * 4  # layers, KV heads, dimensions of keys and values, fp32


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Two levels of prefix, a duplicate, a prompt that is a prefix of others, and a loner."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return rng.integers(3, 300, count).tolist()

    root = ids(40)
    left = root + ids(25)
    chosen = [left + ids(3), left + ids(20), root + ids(5), left, root + ids(1), ids(7)]
    return [np.array(prompt, np.int32) for prompt in [*chosen, chosen[1]]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_are_those_of_generate(
    name: str, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type, overrides = ARCHITECTURES[name]
    save_tiny_model(tmp_path, tiny_config(model_type, **overrides))
    # Outputs believed to be short: too many sequences are admitted, and some are preempted.
    monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 1)
    config = EngineConfig(
        str(tmp_path),
        kv_memory_bytes=NUM_PAGES * PAGE_SIZE * KV_BYTES_PER_TOKEN,
        max_batch_tokens=MAX_BATCH_TOKENS,
        page_size=PAGE_SIZE,
    )
    outputs, stats = run_together(config, prompts, NUM_OUTPUT_TOKENS)
    expected = generate_alone(tmp_path, prompts, NUM_OUTPUT_TOKENS)
    assert_same_but_for_ties(tmp_path, prompts, outputs, expected)

    assert stats.preemptions > 0
    assert max(map(len, prompts)) > 3 * MAX_BATCH_TOKENS  # prompts come in chunks
    assert stats.computed_prompt_tokens < stats.prompt_tokens / 2  # and what they share comes once
    assert len({tuple(output) for output in outputs}) == len(prompts) - 1  # outputs depend on the prompts
