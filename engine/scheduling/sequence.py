"""One request on its way through the scheduler."""

import numpy as np

from engine.request import FinishReason, Request, TokenIds
from engine.scheduling.segment import Segment

_NOTHING = np.empty(0, dtype=np.int32)


class Sequence(Segment):
    """A leaf: the tail of one request's prompt that it shares with nobody, and its output.

    output_ids: int32, tokens generated until it last left the resident table; complete when it has finished.
    finish_reason: None until it has finished.
    num_cached_tokens: prompt tokens whose KV was there when it first ran.
    has_run: pages were given to it once, so rank and num_cached_tokens are settled.
    is_over: finished or dropped.
    tenant: number of the tenant that its tokens are charged to.
    job: number of the job that it is a part of.
    """

    __slots__ = (
        "finish_reason",
        "has_run",
        "is_over",
        "job",
        "num_cached_tokens",
        "output_ids",
        "priority",
        "request",
        "tenant",
    )

    def __init__(
        self,
        parent: Segment | None,
        token_ids: TokenIds,
        request: Request,
        *,
        priority: int = 0,
        tenant: int = 0,
        job: int = 0,
    ) -> None:
        super().__init__(parent, token_ids)
        self.request = request
        self.priority = priority
        self.tenant = tenant
        self.job = job
        self.is_over = False
        self.output_ids: TokenIds = _NOTHING
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        self.has_run = False

    @property
    def known_tokens(self) -> TokenIds:
        if len(self.output_ids) == 0:
            return self.token_ids
        return np.concatenate((self.token_ids, self.output_ids))
