"""A node of the scheduler's forest."""

import numpy as np
from numpy.typing import NDArray

from engine.memory.pages import PageIds
from engine.request import TokenIds

NO_PAGES: NDArray[np.int32] = np.empty(0, dtype=np.int32)
UNRANKED = 1 << 62


class Segment:
    """A run of tokens whose KV is stored once; as it stands here, a shared prefix.

    rank: place in the order in which leaves first ran, of a shared segment the least of those below it;
        UNRANKED before any of them has run.
    parent: the enclosing segment, None for a root.
    token_ids: int32, prompt tokens, at least one.
    position: of its first token in a prompt.
    slot: its row in the resident table while it has pages, else None: then nothing of it is computed.
    page_ids: int32, empty while not resident.
    num_ever_computed: most tokens that were computed before it last lost its pages.
    num_holds: running leaves and held segments right below; while above zero its pages stay.
    num_members: unfinished leaves and living segments right below; at zero it is over.
    num_ended, ended_tokens: finished sequences anywhere below, and the output tokens of all of these; without
        those with ignore_eos, whose length says nothing.
    """

    __slots__ = (
        "ended_tokens",
        "num_ended",
        "num_ever_computed",
        "num_holds",
        "num_members",
        "page_ids",
        "parent",
        "position",
        "rank",
        "slot",
        "token_ids",
    )

    def __init__(self, parent: "Segment | None", token_ids: TokenIds) -> None:
        self.rank = UNRANKED
        self.parent = parent
        self.token_ids = token_ids
        self.position: int = 0 if parent is None else parent.position + len(parent.token_ids)
        self.slot: int | None = None
        self.page_ids: PageIds = NO_PAGES
        self.num_ever_computed = 0
        self.num_holds = 0
        self.num_members = 0
        self.num_ended = 0
        self.ended_tokens = 0

    @property
    def stop(self) -> int:
        """Where it ends in a prompt."""
        return self.position + len(self.token_ids)

    @property
    def known_tokens(self) -> TokenIds:
        """int32: all tokens it has while it is not resident."""
        return self.token_ids
