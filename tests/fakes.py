"""Working stand-ins: a byte tokenizer, an engine that answers without a model, a database that goes away."""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db.session import Database
from engine.errors import ChatTemplateError
from engine.planning.outline import Outline, outline_of
from engine.planning.planner import make_plan
from engine.request import Completion, FinishReason, Grammar, Refusal, Request, TokenIds
from engine.stats import EngineLoad, EngineStats
from engine.text.grammar import Grammars


class ByteTokenizer:
    """One token a byte of UTF-8. Its chat template refuses a conversation that opens with `tool`."""

    vocab_size = 256
    eos_token_ids = frozenset({0})

    def encode(self, text: str) -> TokenIds:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    chat_template = "It writes <tool_call> around calls."

    def encode_markup(self, text: str) -> TokenIds:
        return self.encode(text)

    def render_chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> TokenIds:
        if messages[0]["role"] == "tool":
            raise ChatTemplateError("a conversation cannot open with a tool's answer")
        told = f"<tools>{json.dumps(tools)}" if tools else ""
        for message in messages:
            told += f"<{message['role']}>{message['content']}"
            told += "".join(json.dumps(call["function"]) for call in message.get("tool_calls", []))
        return self.encode(f"{told}<assistant>")

    @cached_property
    def grammars(self) -> Grammars:
        pieces = [b"", *(bytes([byte]) for byte in range(1, 256))]
        return Grammars(pieces, self.eos_token_ids, str.encode)

    def check_grammar(self, grammar: Grammar) -> None:
        self.grammars.check(grammar)

    def decode(self, token_ids: TokenIds) -> str:
        return bytes(np.asarray(token_ids, dtype=np.uint8)).decode(errors="replace")


@dataclass
class FakeEngine:
    """Answers each prompt with itself reversed, cut to max_tokens.

    step_seconds: what a step takes; per_step: requests that end in one.
    kv_tokens: requests with more prompt and output tokens than this are refused.
    run_log: file that gets a line with the request id whenever one starts, for counts across processes.
    fail_at_step: that step raises, as a broken device would.
    embedding_size: it then answers with an embedding instead, the text's first bytes in a row.
    poison, on_poison: what happens when a prompt with these bytes starts; `in_engine` has been noted by then.
    """

    max_context: int = 1000
    embedding_size: int | None = None
    normalises: bool = True
    step_seconds: float = 0.0
    per_step: int = 4
    kv_tokens: int = 10_000
    run_log: Path | None = None
    fail_at_step: int | None = None
    poison: bytes | None = None
    on_poison: Callable[[], None] = lambda: None
    in_engine: frozenset[int] = frozenset()
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    stats: EngineStats = field(default_factory=lambda: EngineStats(kv_capacity_tokens=10_000))
    starts: Counter[int] = field(default_factory=Counter)
    waiting: dict[int, Request] = field(default_factory=dict)
    priorities: dict[int, int] = field(default_factory=dict)

    def add(
        self, requests: Sequence[Request], *, priority: int = 0, tenant: str = "", scope: Hashable = None
    ) -> list[Refusal]:
        refusals = []
        for request in requests:
            assert request.request_id not in self.waiting, request.request_id
            if len(request.prompt_ids) + request.sampling.max_tokens > self.kv_tokens:
                refusals.append(Refusal(request.request_id, f"it needs more than {self.kv_tokens} KV slots"))
            else:
                self.waiting[request.request_id] = request
        had = min(self.priorities.values(), default=priority)
        self.priorities |= {request.request_id: priority for request in requests}
        self.priorities = {id_: self.priorities[id_] for id_ in self.waiting}
        if priority > had:
            self.waiting = dict(sorted(self.waiting.items(), key=lambda item: -self.priorities[item[0]]))
        return refusals

    def outline(self, requests: Sequence[Request]) -> Outline:
        plan = make_plan(requests, page_size=1, num_pages=self.kv_tokens)
        return outline_of(plan, self.tokenizer.decode)

    def drop(self, request_ids: Collection[int]) -> None:
        for request_id in request_ids:
            self.waiting.pop(request_id, None)

    def expected_output_tokens(self, requests: Sequence[Request]) -> int:
        return sum(min(len(request.prompt_ids), request.sampling.max_tokens) for request in requests)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    @property
    def running_ids(self) -> frozenset[int]:
        return frozenset(islice(self.waiting, self.per_step))

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(step_tokens=self.per_step, kv_bytes=self.kv_tokens, used_kv_bytes=len(self.waiting))

    def step(self, least_priority: int | None = None) -> list[Completion]:
        self.stats.steps += 1
        if self.stats.steps == self.fail_at_step:
            raise RuntimeError("the fake device broke")
        started = list(islice(self.waiting.values(), self.per_step))
        self._note_starts(started)
        num_prompt_tokens = sum(len(request.prompt_ids) for request in started)
        self.stats.computed_tokens += num_prompt_tokens
        self.stats.kv_tokens = num_prompt_tokens
        time.sleep(self.step_seconds)
        for request in started:
            del self.waiting[request.request_id]
        return [self._complete(request) for request in started]

    def _note_starts(self, requests: Sequence[Request]) -> None:
        self.starts.update(request.request_id for request in requests)
        if self.run_log is not None:
            with self.run_log.open("a") as log:
                log.write("".join(f"{request.request_id}\n" for request in requests))
        if self.poison is not None and any(self.poison in _bytes(request) for request in requests):
            self.in_engine = frozenset(self.waiting)
            self.on_poison()

    def _complete(self, request: Request) -> Completion:
        answer = request.prompt_ids[::-1][: request.sampling.max_tokens]
        cut = len(answer) < len(request.prompt_ids)
        self.stats.prompt_tokens += len(request.prompt_ids)
        self.stats.computed_prompt_tokens += len(request.prompt_ids)
        self.stats.output_tokens += len(answer)
        return Completion(
            request_id=request.request_id,
            output_ids=answer,
            text=self.tokenizer.decode(answer),
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=0,
            embedding=self._embed(request.prompt_ids),
        )

    def _embed(self, prompt_ids: TokenIds) -> NDArray[np.float32] | None:
        if self.embedding_size is None:
            return None
        vector = np.resize(prompt_ids, self.embedding_size).astype(np.float32)
        return vector / np.float32(np.linalg.norm(vector))


def _bytes(request: Request) -> bytes:
    return bytes(request.prompt_ids.astype(np.uint8))


class FlakyDatabase(Database):
    """A database that can be away. `hides_commits`: it then commits, but the answer is lost on the way."""

    is_away = False
    hides_commits = False

    @contextmanager
    def begin(self) -> Iterator[Session]:
        if self.is_away and not self.hides_commits:
            raise OperationalError("BEGIN", {}, sqlite3.OperationalError("the cable is cut"))
        with super().begin() as session:
            yield session
        if self.is_away:
            self.is_away = False
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("the cable is cut"))
