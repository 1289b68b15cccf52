"""From settings to a running engine. Model code is imported only when an engine is built."""

from typing import TYPE_CHECKING

from app.settings import Settings

if TYPE_CHECKING:
    from engine.encoder_engine import EncoderEngine
    from engine.engine import Engine


def engine_from_settings(settings: Settings) -> "Engine | EncoderEngine":
    """The engine for the configured model. Raises ModelNotUsable or ModelRefused."""
    from engine.config import EngineConfig
    from engine.execution.resolve import resolve_model

    model_path = resolve_model(settings.model, settings.cache_dir)

    from engine.build import build_engine  # after: a model that is not there is told before torch is loaded
    from engine.errors import ModelRefused

    config = EngineConfig(
        model_path=str(model_path),
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        kv_memory_bytes=settings.kv_memory,
        max_batch_tokens=settings.max_batch_tokens,
        num_threads=settings.threads,
        cache_dir=str(settings.cache_dir),
    )
    try:
        return build_engine(config)
    except ModelRefused as refusal:
        raise ModelRefused(f"{settings.model} cannot run here: {refusal}") from refusal
