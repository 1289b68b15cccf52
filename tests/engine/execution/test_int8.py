"""Models whose linear layers are quantized: which run, and what is refused."""

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.execution.model import load_model
from engine.execution.quantized_linear import QuantizedLinear
from tests.embedding_models import save_tiny_encoder
from tests.models import ARCHITECTURES, save_tiny_model, tiny_config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_passes_the_gate(name, tmp_path):
    model_type, overrides = ARCHITECTURES[name]
    path = save_tiny_model(tmp_path, tiny_config(model_type, **overrides))
    loaded = load_model(path, torch.device("cpu"), torch.float32, quantize="int8")
    assert isinstance(loaded.model.lm_head, QuantizedLinear)
    assert isinstance(loaded.model.get_input_embeddings(), torch.nn.Embedding)


def test_a_type_that_is_not_fp32_is_refused(tmp_path):
    config = EngineConfig(str(save_tiny_model(tmp_path)), dtype="bfloat16", quantize="int8")
    with pytest.raises(EngineConfigError, match="--quantize int8 runs in float32 on a CPU, not in bfloat16"):
        build_engine(config)


def test_a_model_that_embeds_is_refused(tmp_path):
    with pytest.raises(EngineConfigError, match="--quantize int8 is for models that generate"):
        build_engine(EngineConfig(str(save_tiny_encoder(tmp_path)), quantize="int8"))
