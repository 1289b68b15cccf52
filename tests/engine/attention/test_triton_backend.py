"""The Triton backend on the interpreter: whole steps, against the naive twin and the torch backend."""

import pytest
import torch

from benchmarks.steps import Step
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.torch_backend import TorchBackend
from engine.attention.triton_backend import TritonBackend
from kernels.prefix_attention import prefix_attention_kernel
from kernels.reference import reference_attention
from tests.engine.attention.forests import random_step

PAGE_SIZE, HEAD_DIM = 8, 16
# One window for each layer, other head counts in the last; soft cap and sinks in some.
WINDOWS = [None, 9, None]
HEADS = [(1, 3), (1, 3), (2, 2)]
SOFT_CAPS = [None, 0.7, None]
HAS_SINKS = [False, True, True]


def _pool(step: Step, seed: int) -> KVPool:
    shapes = [KVShape(num_kv_heads, HEAD_DIM, HEAD_DIM) for num_kv_heads, _ in HEADS]
    pool = KVPool(shapes, step.num_slots, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*pool.keys, *pool.values]:
        tensor.normal_(generator=generator)
    return pool


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that were started, in order."""
    made = []
    start = type(prefix_attention_kernel).run

    def noted(kernel, *arguments, **options):
        made.append(kernel.__name__)
        return start(kernel, *arguments, **options)

    monkeypatch.setattr(type(prefix_attention_kernel), "run", noted)
    return made


@pytest.mark.parametrize("seed", [1, 4])
def test_every_layer_equals_dense_attention_and_the_torch_backend_in_three_launches(seed, launches):
    num_heads = [heads for _, heads in HEADS]
    for layer, window in enumerate(WINDOWS):
        step = random_step(seed, page_size=PAGE_SIZE, scattered=True, max_length=20)
        pool = _pool(step, seed)
        torch.manual_seed(seed)
        query = torch.randn(step.batch.num_tokens, HEADS[layer][1], HEAD_DIM)
        key, value = torch.randn(2, step.batch.num_tokens, HEADS[layer][0], HEAD_DIM)
        planned = TritonBackend(
            pool, PAGE_SIZE, WINDOWS, num_heads, num_programs=1000, has_sinks=HAS_SINKS
        ).plan(step.batch)
        soft_cap, sinks = SOFT_CAPS[layer], torch.randn(HEADS[layer][1]) if HAS_SINKS[layer] else None
        arguments = (layer, query, key, value, 0.3, soft_cap, sinks)
        launches.clear()
        output = planned.attend(*arguments)
        assert launches == ["kv_write_kernel", "prefix_attention_kernel", "merge_states_kernel"]

        keys, values = pool.keys[layer], pool.values[layer]
        dense = reference_attention(query, keys, values, step.visible_slots(window), 0.3, soft_cap, sinks)
        torch.testing.assert_close(output, dense, rtol=1e-5, atol=1e-5)
        other = TorchBackend(pool, PAGE_SIZE, WINDOWS).plan(step.batch)
        torch.testing.assert_close(output, other.attend(*arguments), rtol=2e-5, atol=2e-5)
