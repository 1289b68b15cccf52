"""One claimed batch while it runs: which of its lines still have to be answered, and how they are."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.db.ids import new_id
from app.db.leases import Claim
from app.db.lines import NewResult, PendingLine
from app.heartbeat import Watch
from app.openai.body import BodyError
from app.openai.endpoints import ENDPOINTS, Endpoint
from app.results import ResultQueue, failure, success
from app.translation import TranslatedLine
from engine.request import Completion, Refusal, Request


@dataclass(frozen=True, slots=True)
class RunningLine:
    """A line that the engine holds. `model`: the name its body asked for."""

    line: PendingLine
    model: str

    @property
    def attempt(self) -> int:
        return self.line.attempts + 1  # this attempt was recorded after the line was read


@dataclass(eq=False)
class RunningBatch:
    """State of a claim. `unanswered`: the lines that the engine holds, by request id."""

    claim: Claim
    watch: Watch
    queue: ResultQueue
    fingerprint: str
    unanswered: dict[int, RunningLine] = field(default_factory=dict)

    @property
    def endpoint(self) -> Endpoint:
        return ENDPOINTS[self.claim.endpoint]

    @property
    def is_lost(self) -> bool:
        """Whether another holds the batch now: nothing may be written any more."""
        return self.queue.is_lost or self.watch.status is None

    @property
    def is_departing(self) -> bool:
        """Whether the batch is to leave the engine: cancelled, closed, or lost."""
        return self.is_lost or not self.watch.is_running

    def admit(self, translated: Iterable[TranslatedLine]) -> tuple[list[Request], list[NewResult]]:
        """Splits lines into requests for the engine and results of those whose body is refused."""
        requests: list[Request] = []
        refused: list[NewResult] = []
        for line, outcome in ((item.line, item.outcome) for item in translated):
            if isinstance(outcome, BodyError):
                refused.append(failure(line, line.attempts, outcome))
                continue
            self.unanswered[line.id] = RunningLine(line, outcome.model)
            requests.append(Request(line.id, outcome.prompt_ids, outcome.sampling))
        return requests, refused

    def answer(self, completion: Completion) -> NewResult:
        """The result of a finished request."""
        running = self.unanswered.pop(completion.request_id)
        body = self.endpoint.respond(
            completion,
            response_id=new_id(""),
            created=int(time.time()),
            model=running.model,
            fingerprint=self.fingerprint,
        )
        return success(running.line, running.attempt, body, completion)

    def refuse(self, refusal: Refusal) -> NewResult:
        """The result of a request that the engine can never run."""
        running = self.unanswered.pop(refusal.request_id)
        error = BodyError(
            f"This request cannot run with the memory that is configured here: {refusal.reason}.",
            code="context_length_exceeded",
        )
        return failure(running.line, running.attempt, error)
