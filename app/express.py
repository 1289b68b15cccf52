"""Steps for direct requests alone: beside a big batch each token would take as long as a full step."""

import time

from app.batch_engine import BatchEngine
from app.db.direct import DIRECT_PRIORITY
from engine.request import Completion


class Express:
    """While there are direct requests, half of the time is theirs alone; all other steps have them too."""

    def __init__(self) -> None:
        self._common_seconds = 0.0  # of the last step of all
        self._express_seconds = 0.0  # of the steps since then

    def step(self, engine: BatchEngine, has_direct: bool) -> tuple[list[Completion], float]:
        """What the next step finished, and how long it took in seconds."""
        is_express = has_direct and self._express_seconds < self._common_seconds
        started = time.perf_counter()
        completions = engine.step(DIRECT_PRIORITY) if is_express else engine.step()
        seconds = time.perf_counter() - started
        if is_express:
            self._express_seconds += seconds
        else:
            self._common_seconds, self._express_seconds = seconds, 0.0
        return completions, seconds
