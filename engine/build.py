"""Builds an engine from plain data, wherever it is to run."""

import math
import time
from pathlib import Path

import psutil
import torch

from engine.attention.kv_pool import KVPool, kv_bytes_per_token
from engine.attention.torch_backend import TorchBackend
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.execution.model import load_model
from engine.execution.runner import Runner
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.scheduling.scheduler import Scheduler
from engine.text.tokenizer import Tokenizer

# Of the memory that is free when the engine starts: what is left serves activations and the page cache.
_KV_SHARE_OF_FREE_MEMORY = 0.25
# Of all pages: what one request alone may not ask for, so that its chain of segments, each of which ends
# in a page of its own, still fits and need not be flattened.
_PAGES_FOR_SEGMENT_ENDS = 1 / 8


def build_engine(config: EngineConfig) -> Engine:
    """Load the model and lay out its KV memory.

    Raises ModelNotUsable, ModelRefused, or EngineConfigError where the settings cannot work together.
    """
    if config.device != "cpu":
        raise EngineConfigError(f"--device {config.device} is not supported yet: use --device cpu.")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    started = time.perf_counter()
    path, device = Path(config.model_path), torch.device(config.device)
    loaded = load_model(path, device, getattr(torch, config.dtype))
    tokenizer = Tokenizer(path)
    page_bytes = config.page_size * kv_bytes_per_token(loaded.kv_shapes, loaded.dtype)
    num_pages = _num_pages(config, page_bytes)
    pool = KVPool(loaded.kv_shapes, num_pages * config.page_size, loaded.dtype, device)
    attention = TorchBackend(pool, config.page_size, loaded.windows)
    pages = PagePool(num_pages, config.page_size)
    return Engine(
        run_step=Runner(loaded.model, attention, device).run,
        scheduler=Scheduler(
            pages,
            max_batch_tokens=config.max_batch_tokens,
            eos_token_ids=tokenizer.eos_token_ids,
            lengths=LengthEstimator(),
        ),
        pool=pages,
        tokenizer=tokenizer,
        max_context=min(loaded.max_context, _pages_of_one_request(num_pages) * config.page_size),
        page_bytes=page_bytes,
        load_seconds=time.perf_counter() - started,
    )


def _pages_of_one_request(num_pages: int) -> int:
    return max(num_pages - math.ceil(num_pages * _PAGES_FOR_SEGMENT_ENDS), 1)


def _num_pages(config: EngineConfig, page_bytes: int) -> int:
    kv_bytes = config.kv_memory_bytes
    if kv_bytes is None:
        kv_bytes = int(psutil.virtual_memory().available * _KV_SHARE_OF_FREE_MEMORY)
    if kv_bytes < page_bytes:
        raise EngineConfigError(
            f"--kv-memory {kv_bytes} bytes hold no page of {config.page_size} tokens: "
            f"give this model at least {page_bytes} bytes."
        )
    return kv_bytes // page_bytes
