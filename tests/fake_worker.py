"""A worker process whose engine is a fake; all around it is the real code. Settings as for `batchllm worker`.

python -m tests.fake_worker --per-step 64 --step-seconds 0.02
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from app.cli import stop_on_signals
from app.lifeline import follow_parent
from app.logs import start_log
from app.settings import load_settings
from app.worker_process import run_worker
from engine.request import Completion, TokenIds
from tests.fakes import ByteTokenizer, FakeEngine


class WordTokenizer(ByteTokenizer):
    """A token for four bytes, about what real tokenizers need: prompts take the memory that they would."""

    vocab_size = 1 << 31

    def encode(self, text: str) -> TokenIds:
        data = text.encode("ascii", errors="replace")
        return np.frombuffer(data + b" " * (-len(data) % 4), dtype=np.int32)

    def decode(self, token_ids: TokenIds) -> str:
        return np.ascontiguousarray(token_ids, dtype=np.int32).tobytes().decode("ascii", errors="replace")


@dataclass
class TimedEngine(FakeEngine):
    """Writes the unix time of each step's end as a line of `step_log`, where there is one."""

    step_log: TextIO | None = field(default=None)

    def step(self, least_priority: int | None = None) -> list[Completion]:
        completions = super().step(least_priority)
        if self.step_log is not None:
            self.step_log.write(f"{time.time():.4f}\n")
            self.step_log.flush()
        return completions


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker with a fake engine.")
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--per-step", type=int, default=64)
    parser.add_argument("--step-log", type=Path)
    args = parser.parse_args()
    follow_parent()  # who starts this holds the other end of its standard input
    settings = load_settings()
    start_log("worker", settings.log_format, level=20)
    engine = TimedEngine(
        max_context=1 << 20,
        kv_tokens=1 << 20,
        step_seconds=args.step_seconds,
        per_step=args.per_step,
        tokenizer=WordTokenizer(),
        step_log=args.step_log.open("a") if args.step_log else None,
    )
    run_worker(settings, lambda: engine, stop_on_signals())


if __name__ == "__main__":
    main()
