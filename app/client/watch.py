"""A batch's progress, live: two lines that fit 80 columns, or a line now and then where nobody watches."""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from app.client.remote import Remote, Unreachable

TERMINAL = ("completed", "failed", "expired", "cancelled")
POLL_SECONDS = 1.0
_RATE_SECONDS = 30.0  # tokens a second are told over this window
_PLAIN_SECONDS = 10.0  # between two lines where there is no terminal

Json = dict[str, Any]


class TokenRate:
    """Tokens a second, as of late; None while it cannot be told."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def update(self, now: float, num_tokens: int) -> float | None:
        if self._marks and num_tokens < self._marks[-1][1]:
            self._marks.clear()  # another worker has begun where the last commit was
        self._marks.append((now, num_tokens))
        while now - self._marks[0][0] > _RATE_SECONDS:
            self._marks.popleft()
        seconds, tokens = now - self._marks[0][0], num_tokens - self._marks[0][1]
        return tokens / seconds if seconds > 0 and tokens > 0 else None


def num_tokens_done(batch: Json) -> int:
    """Prompt and output tokens of the lines answered so far."""
    progress, usage = batch["progress"], batch["usage"]
    if progress is not None:
        return int(progress["prompt_tokens_done"] + progress["output_tokens_done"])
    return int(usage["total_tokens"]) if usage is not None else 0


def short(number: float) -> str:
    """1,234 or 56.7k or 8.9M: at most six characters for what a batch can hold."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            unit = 1e3 if letter == "k" else size
            return f"{number / unit:.1f}{letter}"
    return f"{number:,.0f}"


def duration(seconds: int) -> str:
    """0:01:05, from a day on 2 d 3 h."""
    days, rest = divmod(seconds, 86_400)
    return f"{days} d {rest // 3_600} h" if days else str(timedelta(seconds=rest))


def details(batch: Json, rate: float | None) -> str:
    """What the second line says: at most 80 characters for any batch of a service's limits."""
    parts = []
    if rate is not None:
        parts.append(f"{short(rate)} tokens/s")
    usage = batch["usage"]
    if usage is not None and usage["input_tokens"]:
        saved = usage["input_tokens_details"]["cached_tokens"]
        parts.append(f"{short(saved)} tokens saved ({saved / usage['input_tokens']:.0%})")
    parts.append(f"{batch['request_counts']['failed']:,} failed")
    progress = batch["progress"]
    if progress is not None:
        if progress["waiting_for"]:
            return str(progress["waiting_for"])
        if progress["queue_position"]:
            parts.append(f"place {progress['queue_position']} in the queue")
        elif progress["eta_seconds"] is not None:
            parts.append(f"{duration(progress['eta_seconds'])} left")
        elif progress["lines_read"]:
            parts.append(f"{progress['lines_read']:,} lines read")
    return " · ".join(parts)


def watch(
    remote: Remote,
    batch_id: str,
    console: Console,
    sleep: Callable[[float], None] = time.sleep,
) -> Json:
    """Show the batch until it has ended; the batch then. Goes on through absences of the service. Refused."""
    show = _Plain(console) if not console.is_terminal else _Live(console)
    rate = TokenRate()
    with show:
        while True:
            try:
                batch = remote.batch(batch_id)
            except Unreachable:
                show.note("The service does not answer; trying again.")
            else:
                show.batch(batch, details(batch, rate.update(time.monotonic(), num_tokens_done(batch))))
                if batch["status"] in TERMINAL:
                    return batch
            sleep(POLL_SECONDS)


class _Live:
    """A bar and a line below it."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[lines]}", justify="right"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("validating", total=None, lines="")
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> "_Live":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def batch(self, batch: Json, text: str) -> None:
        counts = batch["request_counts"]
        num_done, total = counts["completed"] + counts["failed"], counts["total"]
        self._bar.update(
            self._task,
            description=batch["status"],
            total=total or None,
            completed=num_done,
            lines=f"{num_done:,}/{total:,}" if total else "",
        )
        self.note(text)

    def note(self, text: str) -> None:
        self._live.update(Group(self._bar, Text(text, no_wrap=True, overflow="ellipsis")), refresh=True)


class _Plain:
    """A line at every change of status, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_status: str | None = None
        self._next_at = 0.0

    def __enter__(self) -> "_Plain":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def batch(self, batch: Json, text: str) -> None:
        counts = batch["request_counts"]
        num_done = counts["completed"] + counts["failed"]
        if batch["status"] != self._last_status or time.monotonic() >= self._next_at:
            self._last_status = batch["status"]
            self._say(f"{batch['status']} {num_done}/{counts['total']}: {text}")

    def note(self, text: str) -> None:
        if time.monotonic() >= self._next_at:
            self._say(text)

    def _say(self, text: str) -> None:
        self._next_at = time.monotonic() + _PLAIN_SECONDS
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
