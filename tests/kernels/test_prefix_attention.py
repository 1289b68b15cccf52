"""The three kernels of a layer on the interpreter, against their twins and against torch's SDPA."""

import pytest
import torch

from benchmarks.kernel_cases import CASES, Case, check_case


@pytest.mark.parametrize("name", CASES)
def test_three_launches_equal_their_twins_and_dense_attention(name):
    check_case(CASES[name], torch.device("cpu"))


@pytest.mark.parametrize("group", range(1, 17))
def test_any_number_of_query_heads_per_kv_head(group):
    chunk_and_tail = [(0, 9, 0), (1, 0, 20), (1, 4, 1)]
    check_case(Case(chunk_and_tail, heads=(1, group), dims=(16, 16)), torch.device("cpu"))
