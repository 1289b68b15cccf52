"""An embedding model of transformers, run on many texts in one flat sequence of tokens: no padding, no KV.

An encoder's tokens see their whole text, a decoder's what stands before them: its layers say which.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, AutoModel, PreTrainedModel

from engine.errors import ModelRefused
from engine.execution.embedding_config import EmbeddingConfig, Pooling
from engine.execution.gate import check_model, relative_error
from engine.execution.model import check_name_trap, load_config, load_weights, quiet_transformers
from engine.execution.model_dir import check_model_dir
from engine.execution.packed_linear import pack_linear_layers
from engine.request import TokenIds

ATTENTION_NAME = "batchllm_encoder"
_RUNS_KWARG = "length_runs"
_PROBE_LENGTHS = (9, 9, 5)
# Largest relative error of the probe: rounding is 1e-6 in fp32, 1e-2 in half precision; mixed texts 0.3.
_FP32_TOLERANCE = 1e-4
_HALF_TOLERANCE = 0.1

Runs = list[tuple[int, int]]  # (texts, length): neighbours of equal length


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A model that makes one vector of each text.

    first_position: of a text; some models begin after their padding token's id.
    max_context: most tokens of a text.
    """

    model: PreTrainedModel
    config: EmbeddingConfig
    first_position: int
    max_context: int
    vocab_size: int

    @property
    def embedding_size(self) -> int:
        """Numbers of a vector."""
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def embed(self, texts: Sequence[TokenIds]) -> NDArray[np.float32]:
        """float32 [len(texts), size]. Fastest where texts of equal length are neighbours."""
        hidden = self.hidden_states(texts).float()
        lengths = torch.tensor([len(text) for text in texts], device=hidden.device)
        ends = lengths.cumsum(0)
        if self.config.pooling is Pooling.CLS:
            vectors = hidden[ends - lengths]
        elif self.config.pooling is Pooling.LAST:
            vectors = hidden[ends - 1]
        else:
            vectors = torch.segment_reduce(hidden, "mean", lengths=lengths, axis=0)
        if self.config.normalises:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        embeddings: NDArray[np.float32] = vectors.cpu().numpy()
        return embeddings

    def hidden_states(self, texts: Sequence[TokenIds]) -> torch.Tensor:
        """Of all tokens of the texts, one after the other: [T, hidden size]."""
        runs: Runs = []
        for text in texts:
            if runs and runs[-1][1] == len(text):
                runs[-1] = (runs[-1][0] + 1, len(text))
            else:
                runs.append((1, len(text)))
        positions = np.concatenate([np.arange(len(text)) for text in texts]) + self.first_position
        return _run(self.model, np.concatenate(texts), positions, **{_RUNS_KWARG: runs})


def load_encoder(path: Path, config: EmbeddingConfig, device: torch.device, dtype: torch.dtype) -> Encoder:
    """The embedding model in `path`, checked to give packed texts what each gets alone.

    Raises ModelNotUsable for what cannot be read, ModelRefused for what would be wrong here.
    """
    check_name_trap()
    check_model_dir(path)
    model_config = load_config(path)
    name = model_config.model_type
    num_positions = getattr(model_config, "max_position_embeddings", None)
    if not isinstance(num_positions, int):
        raise ModelRefused(f"{name} does not say its longest text (max_position_embeddings).")
    if model_config.is_encoder_decoder:
        raise ModelRefused(
            f"{name} is an encoder-decoder model; of embedding models encoders or decoders can run here."
        )
    with quiet_transformers():
        # A pooler of the model's own is not part of its embeddings, and may have no weights.
        model = load_weights(path, model_config, device, dtype, AutoModel, unused="pooler.")
        check_model(model)
        if device.type == "cpu" and dtype is torch.float32:
            pack_linear_layers(model)  # before the probe, which is to see the model as it will run
        AttentionInterface.register(ATTENTION_NAME, _attend)
        first_position = _probe(model, config, num_positions, model_config.vocab_size)
    max_context = num_positions - first_position
    return Encoder(
        model=model,
        config=config,
        first_position=first_position,
        max_context=min(max_context, config.max_tokens or max_context),
        vocab_size=model_config.vocab_size,
    )


@torch.inference_mode()
def _probe(model: PreTrainedModel, config: EmbeddingConfig, num_positions: int, vocab_size: int) -> int:
    """Packs three texts as `Encoder` does; the first position with which each gets what it gets alone.

    Raises ModelRefused where there is none.
    """
    name = model.config.model_type
    padding_id = getattr(model.config, "pad_token_id", None)
    rng = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), [] if padding_id is None else [padding_id])
    texts = [rng.choice(usable, length) for length in _PROBE_LENGTHS]
    tolerance = _FP32_TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE
    errors: list[float] = []
    try:
        model.set_attn_implementation("eager")
        alone = torch.cat([_run(model, text) for text in texts])  # with nothing of ours
        model.set_attn_implementation(ATTENTION_NAME)
        for first in [0] if padding_id is None else [0, padding_id + 1]:
            packed = Encoder(model, config, first, num_positions, vocab_size).hidden_states(texts)
            errors.append(relative_error(packed.float(), alone.float()))
            if errors[-1] <= tolerance:
                return first
    except ModelRefused:
        raise
    except Exception as error:  # a model is foreign code: whatever it raises, it cannot run here
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".: ")
        raise ModelRefused(
            f"{name} does not run on packed texts ({type(error).__name__}: {reason})."
        ) from error
    raise ModelRefused(
        f"{name} computes something else for texts packed together than for each alone (relative error "
        f"{min(errors):.2g}): its layers mix tokens outside of attention, or hide some of a text."
    )


def _run(
    model: PreTrainedModel,
    token_ids: TokenIds,
    position_ids: NDArray[np.int64] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Hidden states [T, hidden size] of one flat sequence; without positions, of one text alone."""

    def row(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(model.device)[None]

    if position_ids is not None:
        kwargs["position_ids"] = row(position_ids)
        if getattr(model.config, "type_vocab_size", None):
            # Given, since what a model makes itself is no longer than one text may be.
            kwargs["token_type_ids"] = row(np.zeros(len(token_ids)))
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs["use_cache"] = False  # a decoder would keep KV that nobody reads
    states: torch.Tensor = model(input_ids=row(token_ids), **kwargs).last_hidden_state[0]
    return states


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Each text attends itself: q, k and v [1, H, T, D] to [1, T, H, D]."""
    name = type(module).__name__
    if attention_mask is not None or kwargs.get("sliding_window") is not None:
        raise ModelRefused(
            f"{name} hides tokens of a text from each other; only full attention, both ways or "
            "backwards, can run here."
        )
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ModelRefused(f"{name} caps its scores or has sinks, which is not done in embedding models.")
    if _RUNS_KWARG not in kwargs:
        raise ModelRefused(f"{name} is not given the keyword arguments of the model's call.")
    attended = query.new_empty(query.shape[2], query.shape[1], value.shape[3])  # [T, H, D]
    start = 0
    for num_texts, length in kwargs[_RUNS_KWARG]:
        stop = start + num_texts * length
        q, k, v = (
            states[0, :, start:stop].reshape(-1, num_texts, length, states.shape[3]).transpose(0, 1)
            for states in (query, key, value)
        )  # [texts, H, length, D]
        part = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=bool(getattr(module, "is_causal", False)),
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        attended[start:stop] = part.transpose(1, 2).flatten(0, 1)
        start = stop
    return attended[None], None
