"""When the database is away or a disk is full: wait and try again, so that nothing finished is lost."""

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from app.storage import StorageAway

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


def is_full(error: Exception) -> bool:
    """Whether a disk without space is the trouble, the storage's or the database's."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    original = getattr(error, "orig", None)
    on_sqlite = getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return on_sqlite or getattr(original, "sqlstate", None) == "53100"  # Postgres: disk_full


def trouble(error: Exception) -> str:
    """What the log is told: what to do where a disk is full, else who does not answer."""
    if is_full(error):
        where = "storage's" if isinstance(error, OSError) else "database's"
        return f"The {where} disk is full: it goes on as soon as there is space again ({reason(error)})"
    if isinstance(error, StorageAway):
        return f"The storage does not answer ({reason(error)})"
    return f"The database does not answer ({reason(error)})"


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
            log.warning("%s; trying again.", trouble(error))
            if stop.wait(wait_seconds):
                raise Stopped from error
            wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)
