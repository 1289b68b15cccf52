"""How a process of `serve` notices that `serve` is gone, be it by kill -9."""

import os
import threading


def follow_parent() -> None:
    """End this process when the other end of its standard input, which the parent holds, is closed."""
    threading.Thread(target=_wait_for_the_end, name="lifeline", daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1):
        pass  # nothing is ever sent; only the end counts
    # At once and without clean-up: the next `serve` finds the port and the worker's lock free. What
    # survives kill -9 survives this.
    os._exit(1)
