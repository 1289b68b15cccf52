"""A plan: an ordered forest of segments, made once for many requests."""

from dataclasses import dataclass

from engine.request import Refusal, Request, TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class PlannedSegment:
    """A run of tokens whose KV is stored once.

    A request's prompt is the concatenation of `token_ids` along the chain root -> leaf.

    token_ids: int32 [num_tokens], at least one token.
    parent: index of the enclosing segment in `Plan.segments`, None for a root.
    request: for a leaf, the request whose own prompt tail this is; None for a shared prefix.
    """

    token_ids: TokenIds
    parent: int | None
    request: Request | None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Segments in depth-first preorder: a parent before its children, a subtree contiguous,
    leaves in the order in which they should run.

    num_prompt_tokens: tokens in all planned prompts.
    num_unique_tokens: nodes of the token-level prefix tree (the bound of any sharing), where
        every request keeps at least one token of its own.
    refused: requests that can never fit; they have no leaf.
    """

    segments: tuple[PlannedSegment, ...]
    num_prompt_tokens: int
    num_unique_tokens: int
    refused: tuple[Refusal, ...] = ()

    @property
    def num_computed_tokens(self) -> int:
        """Prompt tokens this plan computes when nothing is preempted or evicted."""
        return sum(len(segment.token_ids) for segment in self.segments)

    @property
    def token_saving(self) -> float:
        """1 - computed / all prompt tokens, the paper's metric; 0.0 for an empty plan."""
        return 1 - self.num_computed_tokens / self.num_prompt_tokens if self.num_prompt_tokens else 0.0
