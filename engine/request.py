"""What goes into the engine and what comes out: plain frozen values."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token or stop string
    LENGTH = "length"  # max_tokens generated


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen. Values are taken as valid; the edge checks them."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0  # noise depends on (seed, number of tokens generated so far) and nothing else
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt to complete.

    request_id: unique among the requests an engine holds; the caller's own key.
    prompt_ids: int32 [num_prompt_tokens], at least one token.
    """

    request_id: int
    prompt_ids: TokenIds
    sampling: SamplingParams


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """A finished request.

    output_ids: int32 [num_output_tokens], an end-of-sequence token included.
    text: the output decoded, without special tokens and without a matched stop string.
    num_cached_tokens: prompt tokens whose KV other requests computed (shared segments that
        were already computed when this request first ran).
    """

    request_id: int
    output_ids: TokenIds
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that can never run here, and why: found while planning, before anything runs."""

    request_id: int
    reason: str
