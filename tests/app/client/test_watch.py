"""What is said of a running batch."""

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.client.remote import Remote, Unreachable
from app.client.watch import TokenRate, details, watch

BATCH: dict[str, Any] = {
    "id": "batch_1",
    "status": "in_progress",
    "request_counts": {"total": 50_000, "completed": 30_000, "failed": 12},
    "usage": {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 80}, "total_tokens": 150},
    "progress": {
        "lines_read": 50_000,
        "prompt_tokens_done": 100,
        "output_tokens_done": 50,
        "eta_seconds": 3_725,
        "queue_position": 0,
        "waiting_for": None,
    },
}


class Scripted(Remote):
    """Answers what it is told to, one after the other; None: nobody is there."""

    def __init__(self, answers: list[dict[str, Any] | None]) -> None:
        self.answers = answers

    def batch(self, batch_id: str) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if answer is None:
            raise Unreachable("gone")
        return answer


def test_details() -> None:
    assert details(BATCH, 1_234.4) == "1,234 tokens/s · 80 tokens saved (80%) · 12 failed · 1:02:05 left"
    waiting = BATCH | {"progress": BATCH["progress"] | {"waiting_for": "The batch is paused."}}
    assert details(waiting, None) == "The batch is paused."
    queued = BATCH | {"progress": BATCH["progress"] | {"queue_position": 3}, "usage": None}
    assert details(queued, None) == "12 failed · place 3 in the queue"
    reading = BATCH | {"progress": BATCH["progress"] | {"eta_seconds": None}, "usage": None}
    assert details(reading, None) == "12 failed · 50,000 lines read"


def large(rate: float, tokens: int, failed: int, eta: int) -> tuple[dict[str, Any], str]:
    usage = {"input_tokens": tokens, "input_tokens_details": {"cached_tokens": tokens}, "total_tokens": 1}
    counts = {"total": 50_000, "completed": 50_000 - failed, "failed": failed}
    progress = BATCH["progress"] | {"eta_seconds": eta}
    batch = BATCH | {"request_counts": counts, "usage": usage, "progress": progress}
    return batch, details(batch, rate)


@given(
    rate=st.floats(0, 1e6),
    tokens=st.integers(1, 10**12),
    failed=st.integers(0, 50_000),
    eta=st.integers(0, 30 * 86_400),
)
def test_80_columns_hold_any_batch(rate: float, tokens: int, failed: int, eta: int) -> None:
    assert len(large(rate, tokens, failed, eta)[1]) <= 80


def test_two_lines_are_drawn() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    batch, _ = large(1e6, 10**10, 50_000, 30 * 86_400)
    remote = Scripted([batch | {"status": "completed"}])
    assert watch(remote, "batch_1", console, sleep=lambda seconds: None)["status"] == "completed"
    bar, below = screen.getvalue().replace("\r", "").splitlines()[-3:-1]
    assert bar.rpartition("\x1b[2K")[2].startswith("completed")
    assert bar.rstrip().removesuffix("\x1b[0m").endswith("50,000/50,000")
    assert below.startswith("10.0G tokens saved (100%) · 50,000 failed · 30 d 0 h left")


def test_an_absence_of_the_service_is_waited_out() -> None:
    screen = io.StringIO()
    ended = BATCH | {"status": "completed"}
    remote = Scripted([BATCH, None, ended])
    assert watch(remote, "batch_1", Console(file=screen), sleep=lambda seconds: None) is ended
    assert remote.answers == []
    assert screen.getvalue().splitlines()[0].startswith("in_progress 30012/50000: ")
    assert screen.getvalue().splitlines()[-1].startswith("completed")


def test_the_rate_forgets_a_worker_that_is_gone() -> None:
    rate = TokenRate()
    assert rate.update(0.0, 1_000) is None
    assert rate.update(10.0, 3_000) == 200.0
    assert rate.update(11.0, 500) is None
    assert rate.update(13.0, 700) == 100.0
