"""How long a batch is said to take: what is left of prompts and expected outputs, at the pace of late."""

import time

import numpy as np
import pytest

from app.batch_telemetry import Telemetry
from app.db.leases import Claim
from app.db.lines import PendingLine
from app.heartbeat import Watch
from app.openai.body import Translated
from app.pace import Pace
from app.results import ResultQueue
from app.running import RunningBatch, RunningLine
from engine.request import SamplingParams
from tests.app.batches import CHAT
from tests.fakes import FakeEngine


def _batch(priority: int, first_id: int, num_lines: int, prompt_tokens: int, max_tokens: int) -> RunningBatch:
    claim = Claim("batch", 1, "worker", "ann", CHAT, "key", 0, priority, 0, 0, False)
    batch = RunningBatch(claim, Watch(claim), ResultQueue(claim), "fp", Telemetry(None))
    asked = Translated("m", (np.ones(prompt_tokens, dtype=np.int32),), SamplingParams(max_tokens=max_tokens))
    lines = [RunningLine(PendingLine(first_id + i, i, str(i), 0, 1, 0), asked) for i in range(num_lines)]
    batch.waiting = lines
    batch.num_prompt_tokens = num_lines * prompt_tokens
    batch.enter(lines[num_lines // 2 :])
    return batch


def _eta(batch: RunningBatch) -> int | None:
    assert batch.watch.progress is not None
    eta: int | None = batch.watch.progress["eta_seconds"]
    return eta


def test_time_left_counts_expected_outputs_and_what_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    # The fake engine expects outputs as long as the prompt, at most max_tokens.
    engine = FakeEngine()
    later = _batch(0, 0, num_lines=1700, prompt_tokens=10, max_tokens=20)
    sooner = _batch(1, 10_000, num_lines=100, prompt_tokens=30, max_tokens=10)
    pace = Pace()
    pace.tell([later, sooner], engine)
    assert (_eta(later), _eta(sooner)) == (None, None)
    clock[0] += 10
    pace.answered(800)
    pace.tell([later, sooner], engine)
    assert _eta(sooner) == 100 * (30 + 10) / 80
    assert _eta(later) == (100 * (30 + 10) + 1700 * (10 + 10)) / 80
