"""Who has the steps while a direct request is in the engine."""

import time

from app.db.direct import DIRECT_PRIORITY
from app.express import Express
from engine.request import Completion
from tests.fakes import FakeEngine


class _Steps(FakeEngine):
    """A step of all takes four times as long as one for direct requests."""

    def __init__(self, monotonic: list[float]) -> None:
        super().__init__()
        self.least: list[int | None] = []
        self._clock = monotonic

    def step(self, least_priority: int | None = None) -> list[Completion]:
        self.least.append(least_priority)
        self._clock[0] += 4.0 if least_priority is None else 1.0
        return []


def test_half_of_the_time_is_for_direct_requests_alone(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    engine, express = _Steps(clock), Express()
    for has_direct in [False, False, *[True] * 10, False]:
        express.step(engine, has_direct)
    alone, of_all = DIRECT_PRIORITY, None
    assert engine.least == [*[of_all] * 2, *[alone] * 4, of_all, *[alone] * 4, of_all, of_all]
