"""Loads a model directory into transformers' own model class, set up to run on our attention."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from engine.attention.interface import ATTENTION_NAME, register
from engine.attention.kv_pool import KVShape
from engine.errors import ModelNotUsable, ModelRefused
from engine.execution.cpu_layers import prepare_for_cpu
from engine.execution.gate import check_config, check_model, probe_layers
from engine.execution.model_dir import check_model_dir


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model that passed the gate, and what the rest of the engine must know of it.

    model: in eval mode, its attention set to ATTENTION_NAME.
    kv_shapes: of each layer.
    windows: of each layer its sliding window in tokens, None for full attention.
    max_context: most tokens of one sequence, prompt and output together.
    """

    model: PreTrainedModel
    kv_shapes: tuple[KVShape, ...]
    windows: tuple[int | None, ...]
    num_query_heads: tuple[int, ...]
    has_sinks: tuple[bool, ...]
    max_context: int
    vocab_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        return len(self.kv_shapes)


def load_model(
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantize: str | None = None,
    cache_dir: Path | None = None,
) -> LoadedModel:
    """Load the model in `path` and let it pass the gate.

    quantize: "int8" for int8 linear layers, in fp32 on the CPU only; None leaves them as they are.
    cache_dir: where compiled kernels are kept; None is the default cache directory.

    Weights are mapped from the files; where type and device fit (fp32 files, CPU) they are not even
    copied. Raises ModelNotUsable for what cannot be read, ModelRefused for what would be wrong here.
    """
    check_name_trap()
    check_model_dir(path)
    config = load_config(path)
    check_config(config)
    with quiet_transformers():
        model = load_weights(path, config, device, dtype, AutoModelForCausalLM)
        check_model(model)
        if device.type == "cpu" and dtype is torch.float32:  # before the gate, which is to see it as it runs
            prepare_for_cpu(model, quantize=quantize, cache_dir=cache_dir)
        layers = probe_layers(model, quantized=quantize is not None)
        register()
        model.set_attn_implementation(ATTENTION_NAME)
    text_config = config.get_text_config(decoder=True)
    return LoadedModel(
        model=model,
        kv_shapes=tuple(KVShape(layer.num_kv_heads, layer.key_dim, layer.value_dim) for layer in layers),
        windows=tuple(layer.window for layer in layers),
        num_query_heads=tuple(layer.num_query_heads for layer in layers),
        has_sinks=tuple(layer.has_sinks for layer in layers),
        max_context=text_config.max_position_embeddings,
        vocab_size=text_config.vocab_size,
        device=device,
        dtype=dtype,
    )


def check_name_trap() -> None:
    """transformers imports a package named `kernels`, and must find our folder of that name or nothing."""
    try:
        found = version("kernels")
    except PackageNotFoundError:
        return
    raise ModelNotUsable(
        f"The package `kernels` {found} is installed, has the name of a folder of BatchLLM and keeps models "
        "from loading: run `pip uninstall kernels`, then install batchllm again."
    )


def load_config(path: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelRefused(
            f"transformers {transformers.__version__} cannot read its config: {_line(error)}"
        ) from error


def load_weights(
    path: Path,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    auto_class: type[AutoModel] | type[AutoModelForCausalLM],
    *,
    unused: str | None = None,
) -> PreTrainedModel:
    """The model in eval mode. unused: how the names of weights begin that may be missing. ModelNotUsable."""
    placement: dict[str, Any] = {} if device.type == "cpu" else {"device_map": device}
    try:
        model, info = auto_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation="eager",  # until the gate sets ours
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    except torch.OutOfMemoryError as error:
        raise ModelNotUsable(
            f"{path} does not fit into the memory of {device}: choose a smaller model."
        ) from error
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise ModelNotUsable(f"{path} cannot be loaded ({_line(error)}): fetch the model again.") from error
    if missing := sorted(key for key in info["missing_keys"] if not (unused and key.startswith(unused))):
        raise ModelNotUsable(
            f"{path} lacks {len(missing)} weights of its architecture, {missing[0]} among them: "
            "fetch the model again."
        )
    model.eval()
    model.requires_grad_(False)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar, load report or warning on stderr: what goes wrong is raised as one sentence."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")
