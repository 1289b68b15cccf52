"""Kernels run on Triton's interpreter in tests, which it must know before any kernel is defined."""

import os

os.environ["TRITON_INTERPRET"] = "1"
