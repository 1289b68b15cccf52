"""The engine of an embedding model: texts in, vectors out, a step at a time."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.request import Completion, FinishReason, Refusal, Request, TokenIds
from engine.stats import EngineLoad, EngineStats
from engine.text.tokenizer import Tokenizer

Embed = Callable[[Sequence[TokenIds]], NDArray[np.float32]]

_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int32)


class _Queue(NamedTuple):
    """Texts that are ordered among themselves."""

    priority: int
    tenant: str


class EncoderEngine:
    """Orders what waits by length, so that a step's texts are alike, and computes equal texts of a step once.

    embed: vectors of some texts, float32 [texts, size].
    max_context: most tokens of a text.
    embedding_size: numbers of a vector.
    max_batch_tokens: most tokens of a step, but for a text that is longer alone.
    """

    def __init__(
        self,
        *,
        embed: Embed,
        tokenizer: Tokenizer,
        max_context: int,
        embedding_size: int,
        normalises: bool,
        max_batch_tokens: int,
        load_seconds: float = 0.0,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_context = max_context
        self.embedding_size: int | None = embedding_size
        self.normalises = normalises
        self._embed = embed
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[_Queue, list[Request]] = {}  # none is empty; the next one last
        self._tokens_done: dict[str, int] = {}  # of each tenant that waits, for equal shares
        self._step_tokens = 0
        self._stats = EngineStats(load_seconds=load_seconds)

    def add(
        self,
        requests: Sequence[Request],
        *,
        priority: int = 0,
        tenant: str = "",
        scope: Hashable = None,
    ) -> list[Refusal]:
        """Let requests without output join. None is ever refused.

        Those of a higher priority go first; tenants of equal priority have equal shares of the tokens.
        scope: says nothing here, since whole texts are all that is shared.
        """
        assert all(request.sampling.max_tokens == 0 for request in requests), "an encoder generates nothing"
        if not requests:
            return []
        # Who comes back gets no more than the others for the time without work.
        self._tokens_done.setdefault(tenant, min(self._tokens_done.values(), default=0))
        queue = self._waiting.setdefault(_Queue(priority, tenant), [])
        queue += requests
        queue.sort(key=lambda request: (len(request.prompt_ids), request.prompt_ids.tobytes()))
        self._stats.prompt_tokens += sum(len(request.prompt_ids) for request in requests)
        return []

    def drop(self, request_ids: Collection[int]) -> None:
        """Take requests out; those that are not here any more are passed over."""
        dropped = frozenset(request_ids)
        for queue, requests in list(self._waiting.items()):
            self._keep(queue, [request for request in requests if request.request_id not in dropped])

    def _keep(self, queue: "_Queue", requests: list[Request]) -> None:
        """Lets these be what waits in a queue; one that is empty goes, and so do tenants without any."""
        self._waiting[queue] = requests
        if not requests:
            del self._waiting[queue]
            if not any(other.tenant == queue.tenant for other in self._waiting):
                del self._tokens_done[queue.tenant]

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def running_ids(self) -> frozenset[int]:
        """Nothing runs between two steps."""
        return frozenset()

    @property
    def stats(self) -> EngineStats:
        """Sums so far."""
        return self._stats

    def outline(self, requests: Sequence[Request]) -> None:
        """None: texts share nothing, each is computed whole."""

    def expected_output_tokens(self, requests: Sequence[Request]) -> int:
        """None: it generates nothing."""
        return 0

    @property
    def load(self) -> EngineLoad:
        """What it holds now: never any KV."""
        return EngineLoad(self._step_tokens, kv_bytes=0, used_kv_bytes=0)

    def step(self, least_priority: int | None = None) -> list[Completion]:
        """Compute one step; the requests that it answered.

        least_priority: says nothing here, since a step's texts are always of the highest priority.
        """
        texts = self._next_texts()
        vectors = self._embed([requests[0].prompt_ids for requests in texts])
        self._stats.steps += 1
        self._stats.computed_prompt_tokens += self._step_tokens
        return [
            _completion(request, vector, is_first=number == 0)
            for requests, vector in zip(texts, vectors, strict=True)
            for number, request in enumerate(requests)
        ]

    def _next_texts(self) -> list[list[Request]]:
        """The requests of each distinct text of the next step, all of one tenant."""
        queue = min(self._waiting, key=lambda queue: (-queue.priority, self._tokens_done[queue.tenant]))
        waiting = self._waiting[queue]
        texts: defaultdict[bytes, list[Request]] = defaultdict(list)
        room = self._max_batch_tokens
        while waiting:
            request = waiting[-1]
            key = request.prompt_ids.tobytes()
            if key not in texts:
                if texts and len(request.prompt_ids) > room:
                    break
                room -= len(request.prompt_ids)
            texts[key].append(request)
            waiting.pop()
        self._step_tokens = self._max_batch_tokens - room
        self._tokens_done[queue.tenant] += self._step_tokens
        self._keep(queue, waiting)
        return list(texts.values())


def _completion(request: Request, vector: NDArray[np.float32], *, is_first: bool) -> Completion:
    num_tokens = len(request.prompt_ids)
    return Completion(
        request_id=request.request_id,
        output_ids=_NO_TOKENS,
        text="",
        finish_reason=FinishReason.LENGTH,
        num_prompt_tokens=num_tokens,
        num_cached_tokens=0 if is_first else num_tokens,
        embedding=vector,
    )
