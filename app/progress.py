"""The progress bar of `run`: on standard error, and only where someone watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

OnProgress = Callable[[int, int], None]  # lines done, lines in all


class RateColumn(ProgressColumn):
    """Requests a second, as of late."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} req/s", style="progress.data.speed")


@contextmanager
def progress_bar(enabled: bool) -> Iterator[OnProgress]:
    """A function to call with the lines done and the lines in all; its first call starts the bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not (enabled and console.is_terminal),
        speed_estimate_period=60,
    ) as progress:

        def show(num_done: int, num_lines: int) -> None:
            if not progress.task_ids:
                progress.add_task("requests", total=num_lines, completed=num_done)
            progress.update(progress.task_ids[0], completed=num_done)

        yield show
