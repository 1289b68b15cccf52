"""The whole engine on the Triton kernels, interpreted: the path of a GPU but for the card itself."""

import time

import numpy as np
import pytest
import torch

from engine.attention.torch_backend import TorchBackend
from engine.attention.triton_backend import TritonBackend
from engine.build import assemble_engine, make_runner
from engine.config import EngineConfig
from engine.execution.model import load_model
from engine.execution.peak_memory import fullest_step
from engine.request import Request, SamplingParams
from tests.models import save_tiny_model, tiny_config

MAX_BATCH_TOKENS = 24
GREEDY = SamplingParams(max_tokens=6, temperature=0)


def _triton_attention(pool, page_size, loaded):
    return TritonBackend(
        pool, page_size, loaded.windows, loaded.num_query_heads, num_programs=500, has_sinks=loaded.has_sinks
    )


def _torch_attention(pool, page_size, loaded):
    return TorchBackend(pool, page_size, loaded.windows)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers, so that the interpreter is done in seconds; one of them with a sliding window."""
    config = tiny_config(
        "gemma3_text",
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=20,
        head_dim=16,
        num_key_value_heads=1,
        num_attention_heads=3,
    )
    path = save_tiny_model(tmp_path_factory.mktemp("model"), config)
    return path, load_model(path, torch.device("cpu"), torch.float32)


def _prompts() -> list[np.ndarray]:
    """Two levels of prefix over four prompts, and a loner."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return rng.integers(3, 300, count).tolist()

    root = ids(30)
    left = root + ids(12)
    prompts = [left + ids(3), left + ids(9), root + ids(5), root + ids(1), ids(7)]
    return [np.array(prompt, np.int32) for prompt in prompts]


def _run(model, make_attention, num_pages):
    path, loaded = model
    page_size = 4
    page_bytes = page_size * sum(shape.num_elements for shape in loaded.kv_shapes) * 4
    config = EngineConfig(
        str(path),
        kv_memory_bytes=num_pages * page_bytes,
        max_batch_tokens=MAX_BATCH_TOKENS,
        page_size=page_size,
    )
    engine = assemble_engine(config, loaded, make_attention, time.perf_counter())
    assert engine.add([Request(index, ids, GREEDY) for index, ids in enumerate(_prompts())]) == []
    outputs = {}
    while engine.has_work:
        outputs |= {done.request_id: done.output_ids.tolist() for done in engine.step()}
    return outputs, engine.stats


def test_tokens_are_those_of_the_torch_backend(model, monkeypatch):
    # Outputs believed to be short: too many sequences are admitted, and some are preempted.
    monkeypatch.setattr("engine.planning.lengths.PRIOR_TOKENS", 1)
    expected, _ = _run(model, _torch_attention, num_pages=22)
    outputs, stats = _run(model, _triton_attention, num_pages=22)
    assert outputs == expected
    assert stats.preemptions > 0
    assert len(_prompts()[0]) > MAX_BATCH_TOKENS  # prefixes come in chunks
    assert stats.computed_prompt_tokens < stats.prompt_tokens / 2  # and once


def test_the_fullest_step_runs(model):
    """What the memory probe runs on a GPU before the pool is laid out; its KV is whatever is there."""
    _, loaded = model
    batch = fullest_step(num_rows=10, page_size=4)
    runner = make_runner(loaded, _triton_attention, len(batch.page_ids), page_size=4)
    assert runner.run(batch).token_ids.shape == (10,)
