"""The CPU attention against its naive twin over random forests."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.kv_pool import KVPool, KVShape
from engine.attention.torch_backend import TorchBackend, merge_state
from kernels.reference import reference_attention
from tests.engine.attention.forests import random_step


def _run(
    seed: int,
    *,
    page_size: int,
    scattered: bool,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    soft_cap: float | None = None,
    with_sinks: bool = False,
):
    step = random_step(seed, page_size=page_size, scattered=scattered)
    num_kv_heads, num_heads = heads
    generator = torch.Generator().manual_seed(seed)
    pool = KVPool(
        [KVShape(num_kv_heads, head_dim, head_dim)] * 2, step.num_slots, torch.float32, torch.device("cpu")
    )
    for layer in (0, 1):
        pool.keys[layer].normal_(generator=generator)
        pool.values[layer].normal_(generator=generator)
    num_rows = step.batch.num_tokens
    if num_rows == 0:
        return None
    query = torch.randn(num_rows, num_heads, head_dim, generator=generator)
    key, value = torch.randn(2, num_rows, num_kv_heads, head_dim, generator=generator)
    planned = TorchBackend(pool, page_size, [window, window]).plan(step.batch)
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
def test_every_row_equals_dense_attention_over_its_own_history(seed, page_size, group, scattered, window):
    result = _run(
        seed, page_size=page_size, scattered=scattered, heads=(2, 2 * group), head_dim=16, window=window
    )
    if result is not None:
        torch.testing.assert_close(*result, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("soft_cap", "with_sinks"), [(None, True), (0.7, False), (0.7, True)])
@pytest.mark.parametrize("window", [None, 7])
@given(seed=st.integers(0, 2**32), group=st.sampled_from([1, 3]))
@settings(max_examples=15, deadline=None)
def test_soft_caps_and_sinks(seed, group, window, soft_cap, with_sinks):
    result = _run(
        seed,
        page_size=4,
        scattered=True,
        heads=(2, 2 * group),
        head_dim=16,
        window=window,
        soft_cap=soft_cap,
        with_sinks=with_sinks,
    )
    if result is not None:
        torch.testing.assert_close(*result, rtol=2e-5, atol=2e-5)


def test_merging_two_halves_equals_the_whole():
    scores, values = torch.randn(5, 2, 30), torch.randn(30, 8)

    def state(part):
        return torch.softmax(scores[..., part], -1) @ values[part], torch.logsumexp(scores[..., part], -1)

    (output, lse), (partial, partial_lse) = state(slice(0, 11)), state(slice(11, 30))
    merge_state(output, lse, partial, partial_lse)
    whole, whole_lse = state(slice(None))
    torch.testing.assert_close(output, whole)
    torch.testing.assert_close(lse, whole_lse)
