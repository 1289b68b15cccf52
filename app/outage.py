"""When the database is away: wait and try again, so that nothing finished is lost."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

# Server gone, connection broken, disk full, database locked: all of them may pass.
OUTAGE = (OperationalError, InterfaceError)

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 10.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class Stopped(Exception):
    """The process is asked to stop while it waits for the database."""


def reason(error: Exception) -> str:
    """The database's own words, one line."""
    lines = str(getattr(error, "orig", error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def ride_out(operation: Callable[[], T], stop: threading.Event) -> T:
    """What `operation` returns, tried again with growing waits while the database is away.

    The operation must bear repetition: an outage can hide that it was committed.
    Raises Stopped if `stop` is set during a wait.
    """
    wait_seconds = FIRST_WAIT_SECONDS
    while True:
        try:
            return operation()
        except OUTAGE as error:
            log.warning("The database does not answer (%s): trying again.", reason(error))
            if stop.wait(wait_seconds):
                raise Stopped from error
            wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)
