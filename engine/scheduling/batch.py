"""One step of work, as columns of arrays: all that a runner needs and nothing it must ask for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.request import SamplingParams, TokenIds

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class SpecialRow:
    """A sampled row whose request asks for more than the columns of a step say.

    index: of the row among the sampled rows.
    prompt_ids, output_ids: int32, the request's tokens up to here; views, good until the step is committed.
    banned_ids: int32, tokens that may not come yet, since they would end the output before min_tokens.
    """

    index: int
    sampling: SamplingParams
    prompt_ids: TokenIds
    output_ids: TokenIds
    banned_ids: TokenIds

    @property
    def edits_logits(self) -> bool:
        return self.sampling.edits_logits or len(self.banned_ids) > 0


@dataclass(frozen=True, slots=True, eq=False)
class TokenMasks:
    """Which tokens the grammars of a step's rows let come next.

    row: of each sampled row that has a grammar, by its index among the sampled rows, its row in `allowed`.
    allowed: uint8 [M, ceil(tokens / 8)], token i of a row is bit i % 8 of byte i // 8; ids behind the last
        bit are not allowed.
    few: of the sampled rows that only few tokens may follow, these tokens, int32 in ascending order.
    """

    row: dict[int, int]
    allowed: NDArray[np.uint8]
    few: dict[int, Ints]


@dataclass(frozen=True, slots=True, eq=False)
class RowLogprobs:
    """Natural log probabilities of one sampled row.

    index: of the row among the sampled rows.
    logprob: of the token that was chosen.
    top_ids: int32 [K], the likeliest tokens, likeliest first, or those asked for; top: float32 [K], theirs.
    """

    index: int
    logprob: float
    top_ids: Ints
    top: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class StepTokens:
    """What a step came to.

    token_ids: int32 [S], the next token of each sampled row.
    logprobs: of the rows that ask, in row order.
    """

    token_ids: TokenIds
    logprobs: tuple[RowLogprobs, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """The step's rows, the segments they read, and the rows that are sampled.

    Rows (one per token to compute, T of them) are sorted by segment in depth-first preorder, so
    the rows of a segment's whole subtree are contiguous and its own rows come first:

        segment   P (shared)        A (leaf)   B (leaf)
        rows      [P P P P P P P P] [a a a]    [b]
                  row_start(P)      ^ row_start(P) + row_count(P)      ^ subtree_end(P)

        P's own rows attend P causally; rows a, b attend all of P (full), then their own segment.

    Rows:
        token_ids: int32 [T], input ids.
        positions: int32 [T], position of each token in its own prompt + output.
        slots: int32 [T], KV slot each row's key and value are written to;
            slot = page_id * page_size + offset.

    Segments (N of them, in preorder): every segment that has a row in this step, and all its ancestors.
        row_start: int32 [N]
        row_count: int32 [N], own rows; 0 for an ancestor whose KV is complete.
        subtree_end: int32 [N], one past the last row of the segment's subtree.
        kv_len: int32 [N], tokens of the segment whose KV exists after this step's write.
        kv_position: int32 [N], position of the segment's first token.
        page_start: int32 [N + 1], segment i owns page_ids[page_start[i]:page_start[i + 1]]; its KV fills
            the first ceil(kv_len / page_size) of them, what follows is set aside for tokens to come.
        page_ids: int32 [P]

    Sampled rows (S of them, in row order):
        sample_rows: int32 [S]
        request_ids: int64 [S], whose next token this is.
        temperature: float32 [S]
        top_p: float32 [S]
        top_k: int32 [S], 0: all tokens.
        min_p: float32 [S]
        seeds: uint64 [S]
        num_generated: int32 [S], tokens generated before this one: the noise's position.
        special: of the rows whose request asks for more than that, in row order; most often none.
        masks: waits for the masks of the rows that have a grammar; None: none of them has.
    """

    token_ids: Ints
    positions: Ints
    slots: Ints
    row_start: Ints
    row_count: Ints
    subtree_end: Ints
    kv_len: Ints
    kv_position: Ints
    page_start: Ints
    page_ids: Ints
    sample_rows: Ints
    request_ids: NDArray[np.int64]
    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    top_k: Ints
    min_p: NDArray[np.float32]
    seeds: NDArray[np.uint64]
    num_generated: Ints
    special: tuple[SpecialRow, ...] = ()
    masks: Callable[[], TokenMasks] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)
