"""The door through which transformers' models reach our attention.

A decoder of transformers calls the attention function registered under its configured name with
rotated queries and keys; ours hands them to the step object that travels through the model's
keyword arguments, so nothing is global but the name.
"""

from typing import Any, Protocol

import torch
from transformers import AttentionInterface

ATTENTION_NAME = "batchllm"
STEP_KWARG = "attention_step"


class AttentionStep(Protocol):
    """The attention of one step: planned once, called once by each layer."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Store the step's keys and values, then attend.

        query [T, Hq, D]; key and value [T, Hkv, D]; returns [T, Hq, D]. soft_cap: scores become
        soft_cap * tanh(score / soft_cap). sinks [Hq]: a score per head that carries no value.
        """


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of transformers' interface: q [1, Hq, T, D], k and v [1, Hkv, T, D]
    to [1, T, Hq, D]. Windows are the layer's own and already part of the step's plan."""
    step: AttentionStep = kwargs[STEP_KWARG]
    layer = module.layer_idx
    assert isinstance(layer, int), f"layer_idx of {type(module).__name__} is {layer!r}"
    rows, row_keys, row_values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    soft_cap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    return step.attend(layer, rows, row_keys, row_values, scaling, soft_cap, sinks).unsqueeze(0), None


def register() -> None:
    """Make ATTENTION_NAME known to transformers. No mask function is registered on purpose: with one,
    transformers would scan the positions for packed sequences at every call."""
    AttentionInterface.register(ATTENTION_NAME, attention_forward)
