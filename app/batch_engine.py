"""What the service needs of an engine."""

from collections.abc import Collection, Sequence
from typing import Protocol

from app.openai.body import PromptTokenizer
from engine.request import Completion, Refusal, Request


class BatchEngine(Protocol):
    """A loop that work joins and leaves between steps; `engine.engine.Engine` is the real one."""

    @property
    def tokenizer(self) -> PromptTokenizer: ...
    @property
    def max_context(self) -> int: ...
    @property
    def has_work(self) -> bool: ...
    def add(self, requests: Sequence[Request], *, priority: int = 0) -> list[Refusal]: ...
    def drop(self, request_ids: Collection[int]) -> None: ...
    def step(self) -> list[Completion]: ...
