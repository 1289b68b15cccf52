"""Both attentions of a CPU against their naive twin over random forests."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.compiled_backend import CompiledBackend
from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.torch_backend import TorchBackend
from engine.cache_dir import default_cache_dir
from kernels import cpu_attention
from kernels.reference import reference_attention
from tests.engine.attention.forests import random_step


@pytest.fixture(scope="module")
def kernel():
    return cpu_attention.load(default_cache_dir() / "kernels")


@pytest.fixture(scope="module", params=["torch", "compiled"])
def make_backend(request):
    """(pool, page_size, windows, num_heads) to a backend."""
    if request.param == "torch":
        return lambda pool, page_size, windows, num_heads: TorchBackend(pool, page_size, windows)
    kernel = request.getfixturevalue("kernel")
    return lambda pool, page_size, windows, num_heads: CompiledBackend(
        pool, page_size, windows, [num_heads] * len(windows), kernel
    )


def _run(
    make_backend,
    seed: int,
    *,
    page_size: int,
    scattered: bool,
    heads: tuple[int, int],
    head_dim: int = 16,
    value_dim: int = 16,
    window: int | None,
    soft_cap: float | None = None,
    with_sinks: bool = False,
):
    step = random_step(seed, page_size=page_size, scattered=scattered)
    num_kv_heads, num_heads = heads
    generator = torch.Generator().manual_seed(seed)
    pool = KVPool(
        [KVShape(num_kv_heads, head_dim, value_dim)] * 2, step.num_slots, torch.float32, torch.device("cpu")
    )
    for layer in (0, 1):
        pool.keys[layer].normal_(generator=generator)
        pool.values[layer].normal_(generator=generator)
    num_rows = step.batch.num_tokens
    if num_rows == 0:
        return None
    query = torch.randn(num_rows, num_heads, head_dim, generator=generator)
    key = torch.randn(num_rows, num_kv_heads, head_dim, generator=generator)
    value = torch.randn(num_rows, num_kv_heads, value_dim, generator=generator)
    planned = make_backend(pool, page_size, [window, window], num_heads).plan(step.batch)
    sinks = torch.randn(num_heads, generator=generator) if with_sinks else None
    output = planned.attend(1, query, key, value, head_dim**-0.5, soft_cap, sinks)
    expected = reference_attention(
        query, pool.keys[1], pool.values[1], step.visible_slots(window), head_dim**-0.5, soft_cap, sinks
    )
    return output, expected


@pytest.mark.parametrize("window", [None, 1, 7, 30])
@pytest.mark.parametrize("scattered", [False, True])
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([1, 4, 16]), group=st.sampled_from([1, 3, 4]))
@settings(max_examples=25, deadline=None)
def test_every_row_equals_dense_attention_over_its_own_history(
    make_backend, seed, page_size, group, scattered, window
):
    result = _run(
        make_backend, seed, page_size=page_size, scattered=scattered, heads=(2, 2 * group), window=window
    )
    if result is not None:
        torch.testing.assert_close(*result, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("soft_cap", "with_sinks"), [(None, True), (0.7, False), (0.7, True)])
@pytest.mark.parametrize("window", [None, 7])
@given(seed=st.integers(0, 2**32), group=st.sampled_from([1, 3]))
@settings(max_examples=15, deadline=None)
def test_soft_caps_and_sinks(make_backend, seed, group, window, soft_cap, with_sinks):
    result = _run(
        make_backend,
        seed,
        page_size=4,
        scattered=True,
        heads=(2, 2 * group),
        window=window,
        soft_cap=soft_cap,
        with_sinks=with_sinks,
    )
    if result is not None:
        torch.testing.assert_close(*result, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("window", [None, 7])
@given(
    seed=st.integers(0, 2**32),
    heads=st.sampled_from([(1, 1), (1, 5), (2, 14), (1, 16), (3, 9), (1, 64)]),
    head_dim=st.sampled_from([8, 20, 64, 80, 96, 128, 256]),
    value_dim=st.sampled_from([8, 34, 64, 80, 128]),
)
@settings(max_examples=40, deadline=None)
def test_every_shape(kernel, seed, heads, head_dim, value_dim, window):
    def compiled(pool, page_size, windows, num_heads):
        return CompiledBackend(pool, page_size, windows, [num_heads] * len(windows), kernel)

    result = _run(
        compiled,
        seed,
        page_size=4,
        scattered=True,
        heads=heads,
        head_dim=head_dim,
        value_dim=value_dim,
        window=window,
    )
    if result is not None:
        torch.testing.assert_close(*result, rtol=2e-5, atol=2e-5)


def test_slots_without_a_token_are_left_alone(kernel):
    step = random_step(3, page_size=4, scattered=True)
    pool = KVPool([KVShape(3, 64, 64)], step.num_slots, torch.float32, torch.device("cpu"))
    unused = torch.ones(step.num_slots, dtype=torch.bool)
    unused[step.kv_slots] = False
    assert unused.any()
    for held in (pool.keys[0], pool.values[0]):
        held.normal_()
        held[unused] = torch.nan
    query = torch.randn(step.batch.num_tokens, 9, 64)
    key, value = torch.randn(2, step.batch.num_tokens, 3, 64)
    output = (
        CompiledBackend(pool, 4, [None], [9], kernel).plan(step.batch).attend(0, query, key, value, 0.125)
    )
    expected = reference_attention(query, pool.keys[0], pool.values[0], step.visible_slots(None), 0.125)
    torch.testing.assert_close(output, expected, rtol=2e-5, atol=2e-5)
    assert pool.keys[0][unused].isnan().all()
    assert pool.values[0][unused].isnan().all()


def test_strided_queries(kernel):
    """As transformers hands them over: heads first, transposed."""
    step = random_step(5, page_size=4, scattered=False)
    pool = KVPool([KVShape(3, 64, 64)], step.num_slots, torch.float32, torch.device("cpu"))
    pool.keys[0].normal_()
    pool.values[0].normal_()
    query = torch.randn(9, step.batch.num_tokens, 64).transpose(0, 1)
    key, value = torch.randn(2, 3, step.batch.num_tokens, 64).transpose(1, 2)
    output = (
        CompiledBackend(pool, 4, [None], [9], kernel).plan(step.batch).attend(0, query, key, value, 0.125)
    )
    expected = reference_attention(query, pool.keys[0], pool.values[0], step.visible_slots(None), 0.125)
    torch.testing.assert_close(output, expected, rtol=2e-5, atol=2e-5)
