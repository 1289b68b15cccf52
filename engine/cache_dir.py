"""Where models and compiled kernels are kept between runs."""

import os
from pathlib import Path

from platformdirs import user_cache_dir


def default_cache_dir() -> Path:
    """BATCHLLM_CACHE_DIR, or the user's cache directory of the platform."""
    return Path(os.environ.get("BATCHLLM_CACHE_DIR") or user_cache_dir("batchllm"))
