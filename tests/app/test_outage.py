"""Waiting for the database."""

import sqlite3
import threading

import pytest
from sqlalchemy.exc import OperationalError

from app import outage
from app.outage import Stopped, reason, ride_out

AWAY = OperationalError("SELECT 1", {}, sqlite3.OperationalError("the cable is cut\nat the wall"))


def test_an_operation_is_tried_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_SECONDS", 0.001)
    failures = [AWAY, AWAY, AWAY]

    def operation() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert ride_out(operation, threading.Event()) == "done"


def test_a_stop_ends_the_waiting() -> None:
    stop = threading.Event()

    def operation() -> None:
        stop.set()
        raise AWAY

    with pytest.raises(Stopped):
        ride_out(operation, stop)


def test_other_errors_are_not_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        ride_out(lambda: 1 // 0, threading.Event())


def test_the_reason_is_one_line() -> None:
    assert reason(AWAY) == "the cable is cut"
