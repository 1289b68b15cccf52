"""Builds an engine from plain data, wherever it is to run."""

import math
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from engine.attention.backend import AttentionBackend
from engine.attention.cpu import cpu_backend
from engine.attention.kv_pool import KVPool, kv_bytes_per_token
from engine.config import EngineConfig
from engine.encoder_engine import EncoderEngine
from engine.engine import Engine
from engine.errors import EngineConfigError, ModelRefused
from engine.execution.embedding_config import EmbeddingConfig, embedding_config
from engine.execution.encoder import load_encoder
from engine.execution.model import LoadedModel, load_model
from engine.execution.peak_memory import free_bytes_beside, fullest_step
from engine.execution.runner import Runner
from engine.memory.pages import PagePool
from engine.planning.lengths import LengthEstimator
from engine.scheduling.scheduler import Scheduler
from engine.text.tokenizer import Tokenizer

AttentionFactory = Callable[[KVPool, int, LoadedModel], AttentionBackend]  # the int: page size

# Of the memory that is free when the engine starts: what is left serves activations and the page cache.
_KV_SHARE_OF_FREE_MEMORY = 0.25
# Of all pages: what one request alone may not ask for, so that its chain of segments, each of which ends
# in a page of its own, still fits and need not be flattened.
_PAGES_FOR_SEGMENT_ENDS = 1 / 8


def build_engine(config: EngineConfig) -> Engine | EncoderEngine:
    """Load the model and, if it generates, lay out its KV memory; one that says how it embeds embeds only.

    Raises ModelNotUsable, ModelRefused, or EngineConfigError where the settings cannot work together.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    started = time.perf_counter()
    device = _device(config.device)
    dtype = config.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if config.quantize is not None and (device.type, dtype) != ("cpu", "float32"):
        raise EngineConfigError(
            f"--quantize {config.quantize} runs in float32 on a CPU, "
            f"not in {dtype} on {device.type}: leave it out."
        )
    embedding = embedding_config(Path(config.model_path))
    if embedding is not None:
        if config.quantize is not None:
            raise EngineConfigError(
                f"--quantize {config.quantize} is for models that generate: leave it out for one that embeds."
            )
        return _build_encoder(config, embedding, device, getattr(torch, dtype), started)
    if device.type != "cpu":
        check_triton()
    cache_dir = None if config.cache_dir is None else Path(config.cache_dir)
    loaded = load_model(
        Path(config.model_path), device, getattr(torch, dtype), quantize=config.quantize, cache_dir=cache_dir
    )
    on_cpu = partial(cpu_attention, cache_dir=cache_dir)
    make_attention = on_cpu if device.type == "cpu" else triton_attention
    return assemble_engine(config, loaded, make_attention, started)


def _build_encoder(
    config: EngineConfig, embedding: EmbeddingConfig, device: torch.device, dtype: torch.dtype, started: float
) -> EncoderEngine:
    encoder = load_encoder(Path(config.model_path), embedding, device, dtype)
    tokenizer = Tokenizer(Path(config.model_path))
    check_vocabulary(tokenizer, encoder.vocab_size)
    return EncoderEngine(
        embed=encoder.embed,
        tokenizer=tokenizer,
        max_context=encoder.max_context,
        embedding_size=encoder.embedding_size,
        normalises=embedding.normalises,
        max_batch_tokens=config.max_batch_tokens,
        load_seconds=time.perf_counter() - started,
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ModelRefused where the tokenizer has ids that the model of `vocab_size` has no row for."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelRefused(
            f"its tokenizer knows {tokenizer.vocab_size} tokens and the model only {vocab_size}"
        )


def assemble_engine(
    config: EngineConfig, loaded: LoadedModel, make_attention: AttentionFactory, started: float
) -> Engine:
    """The engine around a loaded model. started: when its building began, by time.perf_counter()."""
    tokenizer = Tokenizer(Path(config.model_path))
    check_vocabulary(tokenizer, loaded.vocab_size)
    page_bytes = config.page_size * kv_bytes_per_token(loaded.kv_shapes, loaded.dtype)
    kv_bytes = config.kv_memory_bytes
    if kv_bytes is None:
        kv_bytes = _affordable_kv_bytes(config, loaded, make_attention)
    if loaded.device.type == "cpu" and kv_bytes > (most := psutil.virtual_memory().total):
        raise EngineConfigError(f"--kv-memory {kv_bytes} bytes: this machine has {most} in all; lower it.")
    num_pages = _num_pages(config, kv_bytes, page_bytes)
    pages = PagePool(num_pages, config.page_size)
    return Engine(
        run_step=make_runner(loaded, make_attention, num_pages, config.page_size).run,
        scheduler=Scheduler(
            pages,
            max_batch_tokens=config.max_batch_tokens,
            eos_token_ids=tokenizer.eos_token_ids,
            lengths=LengthEstimator(),
        ),
        pool=pages,
        tokenizer=tokenizer,
        max_context=min(loaded.max_context, pages_of_one_request(num_pages) * config.page_size),
        page_bytes=page_bytes,
        load_seconds=time.perf_counter() - started,
    )


def cpu_attention(
    pool: KVPool, page_size: int, loaded: LoadedModel, cache_dir: Path | None = None
) -> AttentionBackend:
    return cpu_backend(pool, page_size, loaded.windows, loaded.num_query_heads, cache_dir)


def triton_attention(pool: KVPool, page_size: int, loaded: LoadedModel) -> AttentionBackend:
    from engine.attention.triton_backend import TritonBackend  # a CPU needs no Triton

    num_programs = torch.cuda.get_device_properties(loaded.device).multi_processor_count
    return TritonBackend(
        pool, page_size, loaded.windows, loaded.num_query_heads, num_programs, loaded.has_sinks
    )


def make_runner(
    loaded: LoadedModel, make_attention: AttentionFactory, num_pages: int, page_size: int
) -> Runner:
    """A runner with KV memory of its own."""
    try:
        pool = KVPool(loaded.kv_shapes, num_pages * page_size, loaded.dtype, loaded.device)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU is one
        raise EngineConfigError(
            f"Memory for {num_pages * page_size} tokens of keys and values is not to be had on this machine: "
            "lower --kv-memory."
        ) from error
    return Runner(loaded.model, make_attention(pool, page_size, loaded), loaded.device)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineConfigError("--device cuda: torch sees no GPU here; use --device cpu.")
    return torch.device(name)


def check_triton() -> None:
    """Raises EngineConfigError where Triton is missing, in which attention on a GPU is written."""
    if find_spec("triton") is None:
        raise EngineConfigError(
            "--device cuda needs Triton, which is not installed: pip install 'batchllm[gpu]'."
        )


def default_kv_bytes() -> int:
    """Memory for keys and values on a CPU where the configuration names none."""
    return int(psutil.virtual_memory().available * _KV_SHARE_OF_FREE_MEMORY)


def _affordable_kv_bytes(config: EngineConfig, loaded: LoadedModel, make_attention: AttentionFactory) -> int:
    if loaded.device.type == "cpu":
        return default_kv_bytes()

    def largest_step() -> None:
        batch = fullest_step(config.max_batch_tokens, config.page_size)
        make_runner(loaded, make_attention, len(batch.page_ids), config.page_size).run(batch)

    return free_bytes_beside(largest_step, loaded.device)


def pages_of_one_request(num_pages: int) -> int:
    return max(num_pages - math.ceil(num_pages * _PAGES_FOR_SEGMENT_ENDS), 1)


def _num_pages(config: EngineConfig, kv_bytes: int, page_bytes: int) -> int:
    if kv_bytes < page_bytes:
        raise EngineConfigError(
            f"--kv-memory {kv_bytes} bytes hold no page of {config.page_size} tokens: "
            f"give this model at least {page_bytes} bytes."
        )
    return kv_bytes // page_bytes
