"""The engine's settings, resolved once, from plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All an engine is built from; picklable, so that an engine can be built in another process.

    model_path: local directory with config.json, safetensors and tokenizer files.
    device: "cpu" or "cuda".
    dtype: "float32", "bfloat16" or "float16": weights, activations and KV; None is float32 on the CPU and
        bfloat16 on a GPU.
    kv_memory_bytes: memory for keys and values of all layers; None lets the engine choose by device.
    max_batch_tokens: most rows computed in one step.
    page_size: KV slots in a page.
    num_threads: CPU threads for tensor operations; None leaves torch's own choice.
    quantize: "int8" rounds linear layers' weights and rows, in float32 on the CPU only; None does not.
    cache_dir: where compiled kernels are kept; None is the default cache directory.
    """

    model_path: str
    device: str = "cpu"
    dtype: str | None = None
    kv_memory_bytes: int | None = None
    max_batch_tokens: int = 1024
    page_size: int = 16
    num_threads: int | None = None
    quantize: str | None = None
    cache_dir: str | None = None
