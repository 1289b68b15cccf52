"""From a finished request to a committed row: the lines of the output and error files, and their writer."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.db.leases import Claim, LeaseLost
from app.db.lines import DuplicateResult, NewResult, PendingLine, record_results
from app.db.session import Database
from app.openai.body import BodyError
from app.openai.usage import Usage
from app.outage import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, OUTAGE, trouble
from app.output_lines import answered_line

CHUNK_RESULTS = 50  # as soon as so many wait, they are written
CHUNK_SECONDS = 1.0  # and no result waits for longer than this
MAX_CHUNK_RESULTS = 500  # most results in one transaction, after a jam

log = logging.getLogger(__name__)


def success(line: PendingLine, attempt: int, body: dict[str, Any], usage: Usage) -> NewResult:
    """The output line of an answered request, with what it consumed."""
    return NewResult(
        request_line_id=line.id,
        ok=True,
        attempt=attempt,
        payload=answered_line(line.custom_id, 200, body),
        input_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
    )


def failure(line: PendingLine, attempt: int, error: BodyError) -> NewResult:
    """The error line of a request that was refused before it ran."""
    return NewResult(
        request_line_id=line.id,
        ok=False,
        attempt=attempt,
        payload=answered_line(line.custom_id, error.status, error.as_body()),
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
    )


@dataclass(eq=False)
class ResultQueue:
    """The results of one claim on their way to the database. Filled by the worker, emptied by the recorder.

    num_completed, num_failed: committed under this claim.
    is_urgent: what waits is written at once.
    is_lost: the claim is lost; whatever waits or still comes is discarded.
    num_in_doubt: size of the chunk at the front whose commit ended in an outage: it may be stored or not.
    """

    claim: Claim
    num_completed: int = 0
    num_failed: int = 0
    is_urgent: bool = False
    is_lost: bool = False
    num_in_doubt: int = 0
    waiting: list[NewResult] = field(default_factory=list)
    oldest_at: float = 0.0  # monotonic time of the first that waits


class Recorder:
    """Commits results in chunks in a thread of its own, each chunk with its counts in one transaction.

    While the database is away results stay in memory; they are dropped only when their claim is lost.
    """

    def __init__(self, database: Database) -> None:
        self.num_completed = 0  # lines committed, of all claims
        self.num_failed = 0
        self._database = database
        self._queues: list[ResultQueue] = []
        self._changed = threading.Condition()
        self._close_at: float | None = None  # monotonic time at which closing gives up on an outage
        self._retry_at = 0.0  # monotonic time before which an outage is left alone
        self._wait_seconds = FIRST_WAIT_SECONDS  # how long the next outage is left alone
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def open(self, claim: Claim) -> ResultQueue:
        """A queue for the results of a claim; `finish` takes it out again."""
        queue = ResultQueue(claim)
        with self._changed:
            self._queues.append(queue)
        return queue

    def put(self, queue: ResultQueue, results: Sequence[NewResult]) -> None:
        """Hand over results; returns at once."""
        if not results:
            return
        with self._changed:
            if not queue.waiting:
                queue.oldest_at = time.monotonic()
            queue.waiting.extend(results)
            self._changed.notify_all()

    def finish(self, queue: ResultQueue) -> bool:
        """Whether nothing waits in the queue any more: it then leaves. Else it is hurried."""
        with self._changed:
            if not self.hurry(queue):
                return False
            self._queues.remove(queue)
            return True

    def hurry(self, queue: ResultQueue) -> bool:
        """Whether nothing waits in the queue; what does is then written at once."""
        with self._changed:
            if not queue.waiting or queue.is_lost:
                return True
            queue.is_urgent = True
            self._changed.notify_all()
            return False

    def wait(self, seconds: float) -> None:
        """Sleep until something is committed, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def check(self) -> None:
        """Raises what ended the recorder, if something did."""
        if self._error is not None:
            raise self._error

    def close(self, patience_seconds: float) -> int:
        """Commit what waits and end the thread; an outage is borne for `patience_seconds`.

        Returns the number of results that could not be committed: their lines will run again.
        """
        with self._changed:
            self._close_at = time.monotonic() + patience_seconds
            self._changed.notify_all()
        self._thread.join()
        return sum(len(queue.waiting) for queue in self._queues if not queue.is_lost)

    def _run(self) -> None:
        try:
            while (queue := self._next_due()) is not None:
                self._commit(queue)
        except BaseException as error:  # told to the worker, which ends with it
            self._error = error
            log.exception("The recorder failed.")

    def _next_due(self) -> ResultQueue | None:
        """Waits for a queue whose results are to be written; None when it is time to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                filled = [queue for queue in self._queues if queue.waiting and not queue.is_lost]
                if self._close_at is not None and (not filled or now >= self._close_at):
                    return None
                due_at = [max(self._due_at(queue), self._retry_at) for queue in filled]
                first_at = min(due_at, default=None)
                if first_at is not None and first_at <= now:
                    return filled[due_at.index(first_at)]
                self._changed.wait(None if first_at is None else first_at - now)

    def _due_at(self, queue: ResultQueue) -> float:
        """The monotonic time at which the queue's results are to be written."""
        if queue.is_urgent or self._close_at is not None or len(queue.waiting) >= CHUNK_RESULTS:
            return 0.0
        return queue.oldest_at + CHUNK_SECONDS

    def _commit(self, queue: ResultQueue) -> None:
        """Writes one chunk of the queue; its results leave the queue only when they are committed."""
        chunk = queue.waiting[: queue.num_in_doubt or MAX_CHUNK_RESULTS]
        try:
            with self._database.begin() as session:
                record_results(session, queue.claim, chunk)
        except LeaseLost:
            queue.is_lost = True
        except DuplicateResult:
            if not queue.num_in_doubt:
                raise
            # The outage hid that the very same chunk was committed.
        except OUTAGE as error:
            log.warning("%d results wait in memory. %s.", len(queue.waiting), trouble(error))
            queue.num_in_doubt = len(chunk)
            self._retry_at = time.monotonic() + self._wait_seconds
            self._wait_seconds = min(2 * self._wait_seconds, LONGEST_WAIT_SECONDS)
            return
        self._wait_seconds = FIRST_WAIT_SECONDS
        with self._changed:
            if not queue.is_lost:
                self._take_out(queue, chunk)
            self._changed.notify_all()

    def _take_out(self, queue: ResultQueue, chunk: Sequence[NewResult]) -> None:
        num_completed = sum(result.ok for result in chunk)
        del queue.waiting[: len(chunk)]
        queue.num_in_doubt = 0
        queue.is_urgent = queue.is_urgent and bool(queue.waiting)
        queue.oldest_at = time.monotonic()
        queue.num_completed += num_completed
        queue.num_failed += len(chunk) - num_completed
        self.num_completed += num_completed
        self.num_failed += len(chunk) - num_completed
