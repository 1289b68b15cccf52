"""What the runner asks of an attention backend."""

from typing import Protocol

from engine.attention.interface import AttentionStep
from engine.scheduling.batch import StepBatch


class AttentionBackend(Protocol):
    def plan(self, batch: StepBatch) -> AttentionStep:
        """All of a step's attention that does not depend on the layer, decided once."""
