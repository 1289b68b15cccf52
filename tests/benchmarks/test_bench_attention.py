"""What the work list reads in the paper's decoding step, counted."""

import pytest

from benchmarks.bench_attention import decode_step, launches, traffic


@pytest.mark.parametrize("groups", [1, 64])
def test_a_decoding_step_reads_each_token_once_in_three_launches(groups):
    step = decode_step(groups, degree=16, prefix=2000, own=250)
    counts = traffic(step)
    assert counts["kv_bytes"] <= 1.05 * counts["least_kv_bytes"]
    assert counts["kv_bytes_per_sequence_attention"] == 6 * counts["least_kv_bytes"]
    assert launches(step) == ["kv_write_kernel", "prefix_attention_kernel", "merge_states_kernel"]
