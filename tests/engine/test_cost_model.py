import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cost_model import CostModel, JobWork, ModelShape, RateCurve, StepWork, shared_work, unshared_work
from engine.hardware import HARDWARE, MODELS
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.planning.planner import make_plan
from engine.scheduling.scheduler import Scheduler
from tests.engine.planning.requests import prompt_lists, request


def _work(rows, keys, *, num_sampled=0, launches=None):
    rows, keys = np.array(rows, dtype=np.int64), np.array(keys, dtype=np.int64)
    launches = np.zeros_like(rows) if launches is None else np.array(launches)
    return StepWork(int(rows.sum()), num_sampled, rows, keys, rows * keys, launches)


@pytest.mark.parametrize(
    ("name", "billions", "kv_kib"),
    [("llama-3.1-8b", 8.03, 128), ("qwen2.5-7b", 7.62, 56), ("qwen2.5-14b", 14.77, 192)],
)
def test_known_models_have_their_published_sizes(name, billions, kv_kib):
    cost = CostModel(MODELS[name], HARDWARE["a100"])
    assert MODELS[name].num_parameters / 1e9 == pytest.approx(billions, rel=0.002)
    assert cost.kv_bytes_per_token == kv_kib * 1024


def test_shape_is_read_from_a_config():
    config = {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    assert ModelShape.from_config(config) == MODELS["smollm2-135m"]


def test_rate_curve_is_straight_between_points_and_flat_outside():
    curve = RateCurve((1, 64), (10.0, 640.0))
    assert curve.at(np.array([1, 8, 64, 1000])) == pytest.approx([10, 80, 640, 640])


def test_many_rows_take_arithmetic_and_few_take_bandwidth():
    cost = CostModel(MODELS["llama-3.1-8b"], HARDWARE["a100"])
    shape, hardware = cost.shape, cost.hardware
    many = cost.step(_work([8192], [1])).linear
    assert many == pytest.approx(8192 * shape.ops_per_row / max(hardware.gemm.ops_per_second))
    weights = shape.num_layers * sum(out * into for out, into in shape.layer_weights) * 2
    assert cost.step(_work([1], [1])).linear == pytest.approx(weights / hardware.memory_bandwidth, rel=0.01)


def test_items_of_one_launch_overlap_and_launches_add_up():
    cost = CostModel(MODELS["llama-3.1-8b"], HARDWARE["a100"])
    prefill, decode = ([4096], [4096]), ([1] * 64, [4096] * 64)
    alone = [cost.step(_work(*part)).attention for part in (prefill, decode)]
    rows, keys = prefill[0] + decode[0], prefill[1] + decode[1]
    together = cost.step(_work(rows, keys)).attention
    apart = cost.step(_work(rows, keys, launches=[0] + [1] * 64)).attention
    assert apart == pytest.approx(sum(alone))
    assert max(alone) < together < apart


def test_launches_are_hidden_behind_long_steps_only():
    cost = CostModel(MODELS["smollm2-135m"], HARDWARE["h100"])
    short, long = cost.step(_work([1], [1])), cost.step(_work([65536], [1]))
    launches = cost.shape.num_layers * cost.hardware.launch_seconds_per_layer
    assert short.total == pytest.approx(launches + cost.hardware.host_seconds_per_step)
    assert long.overhead == pytest.approx(cost.hardware.host_seconds_per_step)


def test_optimum_takes_the_slower_of_arithmetic_and_traffic_for_each_operator():
    cost = CostModel(MODELS["llama-3.1-8b"], HARDWARE["a100"])
    compute_bound = JobWork(rows=10**6, sampled_rows=0, pairs=10**9, kv_reads=0)
    hardware, shape = cost.hardware, cost.shape
    linear = 10**6 * shape.ops_per_row / max(hardware.gemm.ops_per_second)
    attention = 10**9 * shape.ops_per_pair / max(hardware.attention.ops_per_second)
    assert cost.optimum_seconds(compute_bound) == pytest.approx(linear + attention)
    memory_bound = JobWork(rows=10**6, sampled_rows=0, pairs=0, kv_reads=10**9)
    traffic = 10**9 * cost.kv_bytes_per_token / hardware.memory_bandwidth
    assert cost.optimum_seconds(memory_bound) == pytest.approx(linear + traffic)


@settings(max_examples=30, deadline=None)
@given(prompt_lists(), st.integers(2, 20))
def test_sharing_changes_what_attention_reads_but_not_what_it_computes(prompts, max_batch_tokens):
    requests = [request(index, prompt) for index, prompt in enumerate(prompts)]
    pool = PagePool(64, 2)
    scheduler = Scheduler(
        pool, max_batch_tokens=max_batch_tokens, eos_token_ids=frozenset(), lengths=LengthEstimator()
    )
    scheduler.add(make_plan(requests, page_size=2, num_pages=64))
    while scheduler.has_work:
        batch = scheduler.next_batch()
        shared, unshared = shared_work(batch), unshared_work(batch)
        assert shared.item_pairs.sum() == unshared.item_pairs.sum()
        assert shared.num_rows == unshared.num_rows == batch.num_tokens == unshared.item_rows.sum()
        assert shared.item_keys.sum() <= unshared.item_keys.sum()
        scheduler.commit(batch, np.ones(len(batch.request_ids), dtype=np.int32))
