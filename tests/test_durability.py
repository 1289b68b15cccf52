"""kill -9 at random moments of a real batch on SQLite: nothing lost, nothing twice, nothing redone."""

import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service import Service

NUM_LINES = 300
NUM_KILLS = 10
KILLS_AT_START = 3  # of these; the others meet a worker whose engine runs
PATIENCE_SECONDS = 240

# Runs in every Python process of the service: each worker notes the lines that its engine is given, and
# `serve` restarts what dies at once, since ten deaths in a minute would make it wait for minutes.
HOOK = """
import os, sys
if "serve" in sys.argv:
    import app.serve
    app.serve.LONGEST_BACKOFF_SECONDS = app.serve.FIRST_BACKOFF_SECONDS
if "worker" in sys.argv:
    import engine.engine as module
    original = module.Engine.add
    def add(self, requests, **options):
        note = os.open(os.environ["ENGINE_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(note, b"".join(b"%d\\n" % request.request_id for request in requests))
        os.close(note)
        return original(self, requests, **options)
    module.Engine.add = add
"""


def _write_input(path: Path) -> set[str]:
    """Mostly good lines, and some whose body is refused."""
    lines = []
    for number in range(NUM_LINES):
        question = f"What is {number} plus {number % 7}?"
        body = {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 32,  # so long that the last kill still meets a fast machine at work
            "temperature": 9 if number % 50 == 3 else 1,
            "ignore_eos": True,
        }
        line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
    return {f"line-{number}" for number in range(NUM_LINES)}


def _committed(database: Path) -> set[int]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return {row[0] for row in connection.execute("SELECT request_line_id FROM line_results")}
    finally:
        connection.close()


def _engine_runs(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


@pytest.mark.long
@pytest.mark.parametrize("target", ["worker", "serve"])
def test_a_batch_survives_kills(tmp_path, smollm2_dir, target):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    notes = tmp_path / "engine_runs"
    service = Service(
        tmp_path / "data",
        {
            "PYTHONPATH": f"{hook}:{Path(__file__).parents[1]}",
            "ENGINE_RUNS": str(notes),
            "BATCHLLM_KV_MEMORY": "64MiB",  # few lines at a time, so that results trickle in
        },
    )
    custom_ids = _write_input(tmp_path / "in.jsonl")
    service.start()
    file = service.client.files.create(file=tmp_path / "in.jsonl", purpose="batch")
    batch = service.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    at_kills = _kill_at_random_moments(service, target, notes)
    _wait_until(lambda: service.client.batches.retrieve(batch.id).status == "completed")
    runs = _engine_runs(notes)
    for committed, num_runs in at_kills:
        assert not set(runs[num_runs:]) & committed, "a committed line ran again"
    _check_files(service, batch.id, custom_ids)
    assert len(set(runs)) == NUM_LINES - NUM_LINES // 50, "runs were not counted"
    print(f"{target}: {len(at_kills)} kills, {len(runs)} engine runs of {len(set(runs))} lines")
    assert service.stop() == 0


def _kill_at_random_moments(service: Service, target: str, notes: Path) -> list[tuple[set[int], int]]:
    """The lines that were committed at each kill, and how many runs were noted by then."""
    rng = random.Random(target)
    at_start = set(rng.sample(range(1, NUM_KILLS), KILLS_AT_START))
    at_kills: list[tuple[set[int], int]] = []
    for kill in range(NUM_KILLS):
        num_runs = at_kills[-1][1] if at_kills else 0
        if kill not in at_start:
            _wait_until(lambda num_runs=num_runs: len(_engine_runs(notes)) > num_runs)
        time.sleep(rng.uniform(0, 1))
        if target == "serve":
            service.kill()
        else:
            _wait_until(service.kill_worker)
        committed = _committed(service.data_dir / "batchllm.db")
        assert len(committed) < NUM_LINES, "the batch was over before the last kill"
        at_kills.append((committed, len(_engine_runs(notes))))
        if target == "serve":
            service.start()
    return at_kills


def _wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {PATIENCE_SECONDS} s in vain"
        time.sleep(0.05)


def _check_files(service: Service, batch_id: str, custom_ids: set[str]) -> None:
    batch = service.client.batches.retrieve(batch_id)
    assert batch.output_file_id
    assert batch.error_file_id
    assert batch.request_counts
    outputs = service.client.files.content(batch.output_file_id).text.splitlines()
    errors = service.client.files.content(batch.error_file_id).text.splitlines()
    answered = [json.loads(line)["custom_id"] for line in outputs + errors]
    assert Counter(answered) == Counter(custom_ids)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (NUM_LINES, len(outputs), len(errors))
    assert len(errors) == NUM_LINES // 50
