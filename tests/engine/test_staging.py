"""A step's columns on their way to the device."""

import numpy as np
import torch

from engine.staging import to_device


def test_columns_arrive_whole_and_begin_where_no_kernel_is_compiled_anew():
    columns = [np.arange(count, dtype=np.int32) for count in (1, 7, 0, 12)] + [np.ones((3, 5), np.int64)]
    for dtype in (torch.int32, torch.int64):
        staged = to_device(columns, dtype, torch.device("cpu"))
        for column, tensor in zip(columns, staged, strict=True):
            assert tensor.dtype == dtype
            assert tensor.tolist() == column.tolist()
            assert tensor.data_ptr() % 16 == 0
