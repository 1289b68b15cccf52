"""One claimed batch while it runs: which of its lines still have to be answered, and how they are."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.batch_engine import BatchEngine
from app.batch_telemetry import Point, Telemetry
from app.db.ids import new_id
from app.db.leases import Claim
from app.db.lines import NewResult, PendingLine
from app.heartbeat import Watch
from app.openai.body import BodyError, Translated
from app.openai.endpoints import ENDPOINTS, Endpoint
from app.openai.usage import usage_of
from app.results import ResultQueue, failure, success
from app.suspects import ALONE_DEATHS, WATCHED_LINES, is_suspect, num_to_admit, urgency
from app.translation import TranslatedLine
from engine.planning.outline import Outline
from engine.request import Completion, Refusal, Request

# A line's requests are numbered beside it: its first has the line's own id.
_LINE_IDS = 1 << 48
# Some milliseconds' work, once a second.
_LINES_ASKED_OF = 500


def line_id(request_id: int) -> int:
    """The line that a request of the engine belongs to."""
    return request_id % _LINE_IDS


@dataclass(eq=False, slots=True)
class RunningLine:
    """A line in the engine's words, and which of its requests are finished.

    completions: by the number of the request within the line.
    """

    line: PendingLine
    asked: Translated
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        return self.line.attempts + 1  # this attempt was recorded after the line was read

    @property
    def request_ids(self) -> range:
        return range(self.line.id, self.line.id + self.asked.num_requests * _LINE_IDS, _LINE_IDS)

    @property
    def requests(self) -> list[Request]:
        return self.asked.requests(self.request_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.asked.prompts))

    def finish(self, completion: Completion) -> list[Completion] | None:
        """Takes in one completion; all of them in order once there are all."""
        self.completions[completion.request_id // _LINE_IDS] = completion
        num_requests = self.asked.num_requests
        if len(self.completions) < num_requests:
            return None
        return [self.completions[number] for number in range(num_requests)]


@dataclass(eq=False)
class RunningBatch:
    """State of a claim.

    untranslated: the lines still to be translated; None: there are none, and those that wait are in order.
    waiting: lines that are not in the engine yet, the next one last.
    unanswered: the lines that the engine holds requests of, by line id.
    num_entries: how often lines joined the engine.
    undone: lines that left the engine without an answer; their attempts are to be taken back.
    num_read: lines taken in under this claim.
    num_prompt_tokens: of the lines that wait or are in the engine.
    prompt_tokens_done, output_tokens_done: of the lines answered so far, those of earlier claims included.
    is_held_back: its next line is to run alone, and waits for direct requests in the engine to end.
    """

    claim: Claim
    watch: Watch
    queue: ResultQueue
    fingerprint: str
    telemetry: Telemetry
    untranslated: Iterator[TranslatedLine] | None = None
    waiting: list[RunningLine] = field(default_factory=list)
    unanswered: dict[int, RunningLine] = field(default_factory=dict)
    undone: list[PendingLine] = field(default_factory=list)
    num_entries: int = 0
    num_read: int = 0
    num_prompt_tokens: int = 0
    prompt_tokens_done: int = 0
    output_tokens_done: int = 0
    is_held_back: bool = False

    @property
    def endpoint(self) -> Endpoint:
        return ENDPOINTS[self.claim.endpoint]

    @property
    def is_lost(self) -> bool:
        """Whether another holds the batch now: nothing may be written any more."""
        return self.queue.is_lost or self.watch.is_lost

    @property
    def is_departing(self) -> bool:
        """Whether the batch is to leave the engine: cancelled, paused, closed, or lost."""
        return self.is_lost or not self.watch.is_running

    @property
    def has_lines(self) -> bool:
        """Whether lines are left to run or to answer."""
        return bool(self.untranslated or self.waiting or self.unanswered)

    def take_in(self, translated: Iterable[TranslatedLine]) -> list[NewResult]:
        """Lets translated lines wait; results of those whose body is refused."""
        refused: list[NewResult] = []
        for line, outcome in ((item.line, item.outcome) for item in translated):
            self.num_read += 1
            if isinstance(outcome, BodyError):
                refused.append(failure(line, line.attempts, outcome))
                continue
            running = RunningLine(line, outcome)
            self.waiting.append(running)
            self.num_prompt_tokens += running.num_prompt_tokens
        return refused

    def line_up(self) -> None:
        """Orders the waiting lines by urgency; where few run at a time, alike prompts adjoin."""
        if any(is_suspect(running.line.attempts) for running in self.waiting):
            self.waiting.sort(key=lambda one: (_urgency(one), one.asked.prompts[0].tobytes()))

    @property
    def runs_alone(self) -> bool:
        """Whether it has a line in the engine that is to have no other beside it."""
        return self.claim.deaths >= ALONE_DEATHS and any(
            running.line.attempts >= ALONE_DEATHS for running in self.unanswered.values()
        )

    def must_wait(self, lines: Sequence[RunningLine], others: Sequence["RunningBatch"]) -> bool:
        """Whether its `lines`, which are next, may not join what the `others` have in the engine.

        A line that is to run alone does; if direct requests come all the time, the two take turns.
        """
        if self.claim.is_direct:
            return any(other.runs_alone or other.is_held_back for other in others)
        is_to_be_alone = lines[-1].line.attempts >= ALONE_DEATHS
        self.is_held_back = is_to_be_alone and any(other.unanswered for other in others)
        return self.is_held_back

    def next_lines(self) -> list[RunningLine]:
        """The waiting lines that may join the engine now."""
        next_deaths = [running.line.attempts for running in reversed(self.waiting[-WATCHED_LINES:])]
        in_engine = [running.line.attempts for running in self.unanswered.values()] if next_deaths else []
        num_alone = bisect_left(self.waiting, 0, key=_urgency)
        num_lines = num_to_admit(next_deaths, len(self.waiting) - num_alone, in_engine)
        return self.waiting[len(self.waiting) - num_lines :]

    def enter(self, lines: Sequence[RunningLine]) -> None:
        """Notes that the last of the waiting lines are in the engine."""
        del self.waiting[len(self.waiting) - len(lines) :]
        self.unanswered.update((running.line.id, running) for running in lines)
        self.num_entries += 1

    @property
    def entered_whole(self) -> bool:
        """Whether all lines that there were to run are in the engine since they entered together."""
        return not self.waiting and self.num_entries == 1

    def plan(self, outline: Outline) -> None:
        """Notes what all lines share, to be told."""
        self.telemetry.plan(outline, lambda id_: self.unanswered[line_id(id_)].line.custom_id)
        self.watch.outline = self.telemetry.outline

    def measure(self, point: Point, kv_capacity_tokens: int) -> None:
        """Puts what the worker did where the heartbeat finds it."""
        self.telemetry.add(point, kv_capacity_tokens)
        self.watch.series = self.telemetry.series_json()

    def leave(self) -> None:
        """Gives up what is not answered."""
        self.undone.extend(running.line for running in self.unanswered.values())
        self.unanswered.clear()
        self.waiting.clear()
        self.untranslated = None
        self.num_prompt_tokens = 0

    @property
    def request_ids(self) -> list[int]:
        """The requests that the engine holds or has finished, of the lines that are not answered."""
        return [request_id for running in self.unanswered.values() for request_id in running.request_ids]

    def expected_output_tokens(self, engine: BatchEngine) -> int:
        """Of the lines that wait or are in the engine, whole; told from some of them, evenly spread."""
        lines = [*self.waiting, *self.unanswered.values()]
        some = lines[:: -(-len(lines) // _LINES_ASKED_OF) or 1]
        expected = engine.expected_output_tokens([request for line in some for request in line.requests])
        return round(expected * len(lines) / len(some)) if some else 0

    def answer(self, completion: Completion) -> NewResult | None:
        """Takes in a finished request; the result of its line, if it was the last of it."""
        running = self.unanswered[line_id(completion.request_id)]
        completions = running.finish(completion)
        if completions is None:
            return None
        self._take_out(running)
        for failed in completions:
            if failed.failure is not None:
                return failure(running.line, running.attempt, _broken_off(failed.failure))
        usage = usage_of(running.asked, completions)
        self.prompt_tokens_done += usage.prompt_tokens
        self.output_tokens_done += usage.completion_tokens
        body = self.endpoint.respond(
            running.asked,
            completions,
            response_id=new_id(""),
            created=int(time.time()),
            fingerprint=self.fingerprint,
        )
        return success(running.line, running.attempt, body, usage)

    def refuse(self, refusals: Sequence[Refusal]) -> tuple[list[NewResult], list[int]]:
        """The results of lines with a request that the engine can never run, and all requests of these."""
        results: list[NewResult] = []
        request_ids: list[int] = []
        for refusal in {line_id(refusal.request_id): refusal for refusal in refusals}.values():
            running = self.unanswered[line_id(refusal.request_id)]
            self._take_out(running)
            request_ids += running.request_ids
            error = BodyError(
                f"This request cannot run with the memory that is configured here: {refusal.reason}.",
                code="context_length_exceeded",
            )
            results.append(failure(running.line, running.attempt, error))
        return results, request_ids

    def _take_out(self, running: RunningLine) -> None:
        del self.unanswered[running.line.id]
        self.num_prompt_tokens -= running.num_prompt_tokens


def _broken_off(reason: str) -> BodyError:
    return BodyError(
        f"The output was broken off, since its grammar does not let it go on: {reason}.",
        code="grammar_failed",
        status=500,
        type="server_error",
    )


def _urgency(running: RunningLine) -> int:
    return urgency(running.line.attempts)
