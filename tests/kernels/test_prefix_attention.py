"""The three kernels of a layer on the interpreter, against their twins and against torch's SDPA."""

import pytest
import torch

from benchmarks.kernel_cases import CASES, check_case


@pytest.mark.parametrize("name", CASES)
def test_three_launches_equal_their_twins_and_dense_attention(name):
    check_case(CASES[name], torch.device("cpu"))
