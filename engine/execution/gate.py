"""What a model must be to run flattened on our attention; the rest is refused, with the reason.

transformers' models are called with the rows of many sequences in one flat sequence, and only our
attention keeps the sequences apart. A model whose layers mix rows in any other way computes wrong
text without an exception. So the gate looks at the config, then runs a probe: two short prompts,
rows interleaved and at positions far apart, must give what each gives alone on transformers' own
attention.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from engine.errors import ModelRefused

PROBE_NAME = "batchllm_probe"
_PROBE_KWARG = "attention_probe"
_PROBE_TOKENS = 7  # of each prompt
_KEPT_ROWS = 3  # of each prompt, whose logits are compared

_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Frequencies that are a function of the config alone. "dynamic" and "longrope" depend on the largest
# position of whatever else is in the step.
_ROPE_TYPES = {"default", "linear", "llama3", "yarn", "proportional"}

# Norm of the logits' error over the norm of their deviation from their mean. A mixed-up row was seen
# to give 0.3 and more, rounding in fp32 1e-6, in bf16 1e-2. With int8 rows 2e-7 at most was
# seen, but a number that falls to the other side of a rounding edge can move what follows as bf16 does.
_FP32_TOLERANCE = 1e-3
_ROUNDED_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What one layer handed to attention."""

    num_query_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    has_sinks: bool = False


def check_config(config: PreTrainedConfig) -> None:
    """Raise ModelRefused for what the config alone tells, before any weight is read."""
    name = config.model_type
    if config.is_encoder_decoder:
        raise ModelRefused(f"{name} is an encoder-decoder model; only decoders can run here.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelRefused(f"{name} does not generate text; only decoders can run here.")
    text_config = config.get_text_config(decoder=True)
    if not isinstance(getattr(text_config, "max_position_embeddings", None), int):
        raise ModelRefused(f"{name} does not say its longest context (max_position_embeddings).")
    for layer, layer_type in enumerate(getattr(text_config, "layer_types", None) or ()):
        if layer_type not in _LAYER_TYPES:
            raise ModelRefused(
                f"layer {layer} of {name} is of type {layer_type}; only full and sliding attention can run."
            )


def check_model(model: PreTrainedModel) -> None:
    """Raise ModelRefused for what the built modules tell."""
    for module in model.modules():
        rope_types = getattr(module, "rope_type", None)
        for rope_type in rope_types.values() if isinstance(rope_types, dict) else [rope_types]:
            if rope_type is not None and rope_type not in _ROPE_TYPES:
                raise ModelRefused(
                    f"{model.config.model_type} has rotary frequencies of type {rope_type}, "
                    "which depend on the other sequences of a step."
                )


@torch.inference_mode()
def probe_layers(model: PreTrainedModel, *, quantized: bool = False) -> list[LayerFacts]:
    """Run the probe and return what each layer handed to attention. Raises ModelRefused.

    Costs three or five forward passes of at most 14 rows. Leaves the model on the probe's attention.
    """
    name = model.config.model_type
    text_config = model.config.get_text_config(decoder=True)
    probe = _Probe.build(text_config.vocab_size, text_config.max_position_embeddings, model.device)
    try:
        apart = probe.run_apart(model)
        packed = probe.run_packed(model)
    except ModelRefused:
        raise
    except Exception as error:  # a model is foreign code: whatever it raises, it cannot run here
        raise ModelRefused(
            f"{name} does not run on the rows of two short prompts ({type(error).__name__}: {_line(error)})."
        ) from error
    layers = _one_call_each(name, probe.calls, text_config)
    is_exact = model.dtype == torch.float32 and not quantized
    tolerance = _FP32_TOLERANCE if is_exact else _ROUNDED_TOLERANCE
    if not (difference := relative_error(packed, apart)) <= tolerance:
        raise ModelRefused(
            f"{name} computes other logits for two prompts packed together than for each alone "
            f"(relative error {difference:.2g}): its layers mix rows outside of attention."
        )
    if _hides_a_window(model, probe, apart, layers, tolerance):
        raise ModelRefused(f"{name} has a sliding window that its layers do not hand to attention.")
    return layers


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).norm() / (expected - expected.mean()).norm())


def _hides_a_window(
    model: PreTrainedModel, probe: "_Probe", apart: torch.Tensor, layers: list[LayerFacts], tolerance: float
) -> bool:
    """Whether the config's window shapes the model's own mask though no layer speaks of it.

    The probe is shorter than any window, so it is run once more with a window of two tokens.
    """
    text_config = model.config.get_text_config(decoder=True)
    window = getattr(text_config, "sliding_window", None)
    is_spoken_of = getattr(text_config, "layer_types", None) or any(layer.window for layer in layers)
    if is_spoken_of or not isinstance(window, int) or window >= text_config.max_position_embeddings:
        return False
    try:
        text_config.sliding_window = 2
        return relative_error(probe.run_apart(model), apart) > tolerance
    finally:
        text_config.sliding_window = window


def _one_call_each(
    name: str, calls: dict[int, list[LayerFacts]], text_config: PreTrainedConfig
) -> list[LayerFacts]:
    if not calls:
        raise ModelRefused(f"{name} does not run its attention through transformers' attention interface.")
    num_layers = text_config.num_hidden_layers
    layer_types = getattr(text_config, "layer_types", None)
    for layer in range(num_layers):
        num_calls = len(calls.get(layer, ()))
        if num_calls != 1:
            raise ModelRefused(f"layer {layer} of {name} runs attention {num_calls} times instead of once.")
        is_windowed = calls[layer][0].window is not None
        if layer_types and is_windowed != (layer_types[layer] == "sliding_attention"):
            raise ModelRefused(
                f"layer {layer} of {name} is of type {layer_types[layer]} but attends otherwise."
            )
    if extra := sorted(set(calls) - set(range(num_layers))):
        raise ModelRefused(f"{name} runs attention in a layer {extra[0]} beyond its {num_layers}.")
    return [calls[layer][0] for layer in range(num_layers)]


@dataclass(frozen=True, slots=True, eq=False)
class _Probe:
    """Two prompts as the interleaved rows of one step, and the record of the layers' calls.

        row       0   1   2   3   4   5  ...
        prompt    0   1   0   1   0   1
        position  0   f   1  f+1  2  f+2      f: the second stands at the end of the context, so that
                                              frequencies that look at the largest position differ

    token_ids, positions, prompts: int64 [T].
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    prompts: torch.Tensor
    calls: dict[int, list[LayerFacts]] = field(default_factory=dict)

    @classmethod
    def build(cls, vocab_size: int, max_context: int, device: torch.device) -> "_Probe":
        rows = torch.arange(2 * _PROBE_TOKENS, device=device)
        prompts = rows % 2
        far = max(max_context - _PROBE_TOKENS, 0)
        generator = torch.Generator().manual_seed(0)
        token_ids = torch.randint(vocab_size, (len(rows),), generator=generator).to(device)
        return cls(token_ids, rows // 2 + prompts * far, prompts)

    def run_apart(self, model: PreTrainedModel) -> torch.Tensor:
        """Each prompt alone on eager attention: logits fp32 [2, kept rows, vocabulary]."""
        _set_attention(model, "eager")
        kept = torch.arange(_PROBE_TOKENS - _KEPT_ROWS, _PROBE_TOKENS, device=self.token_ids.device)
        return torch.cat([self._logits(model, self.prompts == prompt, kept) for prompt in (0, 1)])

    def run_packed(self, model: PreTrainedModel) -> torch.Tensor:
        """Both in one flat sequence on the probe's attention: the same logits."""
        AttentionInterface.register(PROBE_NAME, _probe_forward)
        _set_attention(model, PROBE_NAME)
        kept = torch.arange(2 * (_PROBE_TOKENS - _KEPT_ROWS), 2 * _PROBE_TOKENS, device=self.token_ids.device)
        logits = self._logits(model, self.prompts >= 0, kept, **{_PROBE_KWARG: self})
        return logits[0].view(_KEPT_ROWS, 2, -1).transpose(0, 1)

    def _logits(
        self, model: PreTrainedModel, rows: torch.Tensor, kept: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        logits: torch.Tensor = model(
            input_ids=self.token_ids[rows][None],
            position_ids=self.positions[rows][None],
            logits_to_keep=kept,
            use_cache=False,
            **kwargs,
        ).logits
        if logits.shape[1] != len(kept):
            name = model.config.model_type
            raise ModelRefused(f"{name} cannot be asked for the logits of single rows (logits_to_keep).")
        return logits.float()

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
        soft_cap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention, spelled out: query [1, Hq, T, D], key and value [1, Hkv, T, D], sinks [Hq] to
        [1, T, Hq, D]."""
        group_size = query.shape[1] // key.shape[1]
        distance = self.positions[:, None] - self.positions[None, :]
        seen = (self.prompts[:, None] == self.prompts[None, :]) & (distance >= 0)
        if window is not None:
            seen &= distance < window
        scores = query @ key.repeat_interleave(group_size, dim=1).transpose(2, 3) * scaling
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        scores = scores.float().masked_fill(~seen, -torch.inf)
        if sinks is not None:
            column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
        return (weights @ value.repeat_interleave(group_size, dim=1)).transpose(1, 2).contiguous()


def _set_attention(model: PreTrainedModel, implementation: str) -> None:
    try:
        model.set_attn_implementation(implementation)
    except ValueError as error:
        raise ModelRefused(f"{model.config.model_type} cannot run on another attention: {error}") from error


def _probe_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The probe as an attention function of transformers' interface."""
    name = type(module).__name__
    if attention_mask is not None:
        raise ModelRefused(f"{name} builds an attention mask of its own.")
    if getattr(module, "is_causal", True) is False:
        raise ModelRefused(f"{name} lets tokens see later ones, as encoders do; only decoders can run here.")
    if _PROBE_KWARG not in kwargs:
        raise ModelRefused(f"{name} is not given the keyword arguments of the model's call.")
    probe: _Probe = kwargs[_PROBE_KWARG]
    soft_cap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    facts = LayerFacts(
        query.shape[1], key.shape[1], key.shape[3], value.shape[3], sliding_window, sinks is not None
    )
    probe.calls.setdefault(module.layer_idx, []).append(facts)  # type: ignore[arg-type]
    return probe.attend(query, key, value, scaling, sliding_window, soft_cap, sinks), None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".: ")
