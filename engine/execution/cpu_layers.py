"""Makes a model that transformers built for any device fast on the CPU, in fp32 or with int8 weights."""

import functools
import logging
from pathlib import Path

from transformers import PreTrainedModel

from engine.cache_dir import default_cache_dir
from engine.execution.fused_layers import fuse_layers
from engine.execution.packed_linear import pack_linear_layers
from engine.execution.quantized_linear import quantize_linear_layers
from kernels import cpu_layers
from kernels.cpu_library import CompilerMissing

_log = logging.getLogger(__name__)


def prepare_for_cpu(
    model: PreTrainedModel, *, quantize: str | None = None, cache_dir: Path | None = None
) -> None:
    """Change the layers of an fp32 model on eager attention, in place.

    quantize: "int8" or None. cache_dir: where compiled kernels are kept, None: the default.
    """
    kernels = _compiled((cache_dir or default_cache_dir()) / "kernels")
    if kernels is not None:
        fuse_layers(model, kernels)
    if quantize is None:
        pack_linear_layers(model)
    else:
        quantize_linear_layers(model, kernels or cpu_layers)


@functools.cache
def _compiled(folder: Path) -> cpu_layers.CpuLayers | None:
    try:
        return cpu_layers.CpuLayers(folder)
    except CompilerMissing as missing:
        _log.warning(
            "Norms, gates and rotations run on torch's operators, several passes each: their own kernels "
            "could not be built (%s). Install a C compiler, such as gcc.",
            missing,
        )
        return None
