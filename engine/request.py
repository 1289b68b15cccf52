"""What goes into the engine and what comes out: plain frozen values."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens generated


class GrammarKind(StrEnum):
    """How a grammar's text is to be read."""

    JSON_SCHEMA = "json_schema"  # JSON of a schema, draft 2020-12
    REGEX = "regex"  # of Rust's regex crate; the whole output has to match
    CHOICE = "choice"  # JSON of a list of strings, one of which is the output
    LARK = "lark"  # Lark as llguidance reads it, or llama.cpp's GBNF


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output has to be; it ends where the grammar lets it end, or with its last token."""

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen. Values are taken as valid; the edge checks them.

    max_tokens: 0 asks for the embedding of the prompt and no token: for models that embed.

    engine/execution says what each of them does to the logits, and in which order.
    """

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit), each id once
    seed: int = 0  # noise depends on (seed, number of tokens generated so far) and nothing else
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  # before so many nothing ends the output
    ignore_eos: bool = False
    top_logprobs: int | None = None  # report each token's logprob and so many likeliest; None: nothing
    grammar: Grammar | None = None  # not together with ignore_eos
    logprobs_of: tuple[int, ...] = ()  # report these tokens instead of the likeliest, in this order

    @property
    def is_special(self) -> bool:
        """Whether a step must know more of the request than a few numbers."""
        return self.edits_logits or self.min_tokens > 0 or self.top_logprobs is not None

    @property
    def edits_logits(self) -> bool:
        return self.has_penalties or self.grammar is not None

    @property
    def has_penalties(self) -> bool:
        """Penalties or biases."""
        return bool(
            self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1 or self.logit_bias
        )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt to complete.

    request_id: unique among the requests an engine holds; the caller's own key.
    prompt_ids: int32 [num_prompt_tokens], at least one token.
    """

    request_id: int
    prompt_ids: TokenIds
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One output token and its chance.

    token: the bytes that it stands for; alone they need not be whole characters.
    logprob: natural logarithm of its probability under the model, before temperature, penalties and limits.
    top: the same of the likeliest tokens, likeliest first, or of those that were asked for.
    offset: characters of the text before the token.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """A finished request.

    output_ids: int32 [num_output_tokens], an end-of-sequence or stop token included.
    text: the output decoded, without special tokens and without the stop string or stop token that ended it.
    num_cached_tokens: prompt tokens whose KV other requests computed (shared segments that
        were already computed when this request first ran).
    logprobs: of the tokens that `text` shows a part of and special ones among them; None if not asked for.
    embedding: float32 [size], of the prompt; None from a model that generates.
    failure: why the output was broken off where its grammar allows no end; None: it was not.
    """

    request_id: int
    output_ids: TokenIds
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    embedding: NDArray[np.float32] | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that can never run here, and why: found while planning, before anything runs."""

    request_id: int
    reason: str
