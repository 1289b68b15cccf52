"""Attention scores spelled out, for layers that the fused CPU kernel cannot do."""

import torch


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool = False,
    mask: torch.Tensor | None = None,
    *,
    soft_cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, Hq, R, D] over k [B, Hkv, n, D] and v [B, Hkv, n, Dv], n > 0, Hq a multiple of Hkv:
    ([B, Hq, R, Dv], natural-log lse [B, Hq, R]).

    causal: row i sees the first i + 1 keys. mask: float, 0 or -inf, broadcast over [B, Hq, R, n]; a row that
    sees nothing gives 0 and lse -inf. soft_cap: scores become soft_cap * tanh(score / soft_cap) (Gemma 2).
    """
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1).float() for tensor in (key, value))
    scores = query.float() @ key.transpose(2, 3) * scaling
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - torch.where(lse == -torch.inf, 0, lse).unsqueeze(-1))
    return (weights @ value).to(query.dtype), lse


def add_sinks(output: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> None:
    """Let sinks [Hq], scores that carry no value, take part in the softmax of whole rows, in place:
    output [T, Hq, D] shrinks by exp(lse) / (exp(lse) + exp(sink)); lse [T, Hq]."""
    output.mul_(torch.sigmoid(lse - sinks).unsqueeze(-1).to(output.dtype))
