"""Engines on a tiny model, and what they make of requests."""

from collections.abc import Sequence
from pathlib import Path

from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import Completion, Request

KV_BYTES_PER_TOKEN = 3 * 2 * 2 * 8 * 4  # of the tiny Llama: layers, K and V, KV heads, head dim, fp32


def tiny_engine(
    model_dir: Path, *, kv_tokens: int = 4_000, max_batch_tokens: int = 64, page_size: int = 4
) -> Engine:
    return build_engine(
        EngineConfig(
            str(model_dir),
            kv_memory_bytes=kv_tokens * KV_BYTES_PER_TOKEN,
            max_batch_tokens=max_batch_tokens,
            page_size=page_size,
        )
    )


def run(engine: Engine, requests: Sequence[Request]) -> dict[int, Completion]:
    """All requests to their end; completions by request id."""
    assert engine.add(requests) == []
    done: dict[int, Completion] = {}
    while engine.has_work:
        for completion in engine.step():
            assert completion.request_id not in done
            done[completion.request_id] = completion
    return done
