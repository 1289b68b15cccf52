"""What the service needs of an engine."""

from collections.abc import Collection, Hashable, Sequence
from typing import Protocol

from app.openai.body import PromptTokenizer
from engine.planning.outline import Outline
from engine.request import Completion, Refusal, Request
from engine.stats import EngineLoad, EngineStats


class BatchEngine(Protocol):
    """A loop that work joins and leaves between steps; `engine.engine.Engine` is the real one."""

    @property
    def tokenizer(self) -> PromptTokenizer: ...
    @property
    def max_context(self) -> int: ...
    @property
    def embedding_size(self) -> int | None: ...  # None: it generates, and takes no request with max_tokens 0
    @property
    def normalises(self) -> bool: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def running_ids(self) -> frozenset[int]: ...
    @property
    def stats(self) -> EngineStats: ...
    @property
    def load(self) -> EngineLoad: ...
    @property
    def outline(self) -> Outline | None: ...
    def add(
        self, requests: Sequence[Request], *, priority: int = 0, tenant: str = "", scope: Hashable = None
    ) -> list[Refusal]: ...
    def drop(self, request_ids: Collection[int]) -> None: ...
    def step(self) -> list[Completion]: ...
