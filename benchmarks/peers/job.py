"""What every peer's script does: read the job, time the run, write the answer. Standard library only."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = list[list[int]] | list[str]  # token ids or the text of each prompt's output, in the job's order


def run(load: Callable[[dict[str, Any]], Callable[[list[list[int]], int], Answer]]) -> None:
    """python SCRIPT JOB.json ANSWER.json; `load` returns a function of (prompts, tokens to generate)."""
    job = json.loads(Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    generate = load(job)
    load_seconds = time.perf_counter() - started
    generate([[1000, 2000, 3000, 4000]], 2)  # what is built at a first call is built now
    started = time.perf_counter()
    answers = generate(job["prompts"], job["max_tokens"])
    seconds = time.perf_counter() - started
    for ids in answers:
        assert isinstance(ids, str) or len(ids) == job["max_tokens"], (
            f"{len(ids)} tokens are too few or too many"
        )
    result = {"seconds": seconds, "load_seconds": load_seconds, "answers": answers}
    Path(sys.argv[2]).write_text(json.dumps(result))
