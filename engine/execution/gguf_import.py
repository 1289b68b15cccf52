"""A GGUF checkpoint as a plain model directory: safetensors, config and tokenizer, written once."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# Keys of a GGUF import's config that do not describe the model.
_IMPORT_KEYS = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")


def convert_gguf(gguf_path: Path, output_dir: Path, *, split_digits: bool) -> None:
    """Write the checkpoint's dequantised fp32 weights, its config and its tokenizer to `output_dir`.

    split_digits: the model's own tokenizer splits digits one by one before anything else
        (GGUF's "smollm" pre-tokenizer), which transformers' import loses.

    Takes about half a minute, most of it reading the file's metadata three times, and memory for
    two copies of the weights. Raises whatever transformers raises on a file it cannot read.
    """
    folder, file = str(gguf_path.parent), gguf_path.name
    config = AutoConfig.from_pretrained(folder, gguf_file=file)

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, config=config)
    tokenizer.model_max_length = config.max_position_embeddings
    if split_digits:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = PreTokenizerSequence([Digits(individual_digits=True), backend.pre_tokenizer])
    tokenizer.save_pretrained(output_dir)

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, config=config, dtype=torch.float32)
    # save_pretrained refuses a model that came from GGUF, so a fresh one takes its weights over.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_plain_config(config), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(output_dir)


def _plain_config(config: Any) -> Any:
    values = {key: value for key, value in config.to_dict().items() if key not in _IMPORT_KEYS}
    return AutoConfig.for_model(**values)
