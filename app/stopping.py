"""How a stop is heard while something runs that cannot look at an event, such as the loading of a model."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_raise(kind: type[BaseException]) -> Iterator[None]:
    """SIGTERM and Ctrl-C raise `kind` inside the block: there is nothing to save, so a stop need not wait.

    For the main thread only.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise kind

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
