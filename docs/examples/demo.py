"""A whole job as a user runs it: start the service, send a batch file through the openai SDK, watch it,
read the answers, stop the service.

    python docs/examples/demo.py [FILE.jsonl]
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

QUESTIONS = Path(__file__).with_name("questions.jsonl")
TERMINAL = {"completed", "failed", "expired", "cancelled"}
console = Console()


@contextmanager
def running_service(data_dir: str) -> Iterator[str]:
    """`batchllm serve` on a free port of this machine; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"BATCHLLM_DATA_DIR": data_dir, "BATCHLLM_PORT": str(port), "BATCHLLM_OPS_PORT": "0"}
    environment = os.environ | own
    service = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment)
    try:
        wait_until_ready(service, f"http://127.0.0.1:{port}/readyz")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=60)


def wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    while service.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    sys.exit("the service stopped before it was ready; its message is above")


def watch(client: OpenAI, batch: Batch) -> Batch:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(batch.status, total=None)
        while batch.status not in TERMINAL:
            time.sleep(0.5)
            batch = client.batches.retrieve(batch.id)
            counts = batch.request_counts
            done = counts.completed + counts.failed if counts else 0
            total = counts.total or None if counts else None
            progress.update(bar, description=batch.status, completed=done, total=total)
    return batch


def show_answers(questions: Path, output: str, most: int) -> None:
    asked = {
        line["custom_id"]: line["body"]["messages"][-1]["content"]
        for line in map(json.loads, questions.open())
    }
    for line in output.splitlines()[:most]:
        result = json.loads(line)
        answer = result["response"]["body"]["choices"][0]["message"]["content"]
        console.print(f"[dim]{asked[result['custom_id']]}[/dim]\n    {answer.strip()}", highlight=False)


def main(questions: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="batchllm-demo-") as data_dir, running_service(data_dir) as url:
        client = OpenAI(base_url=url, api_key="not-needed-on-loopback")
        file = client.files.create(file=questions, purpose="batch")
        started = time.monotonic()
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = watch(client, batch)
        seconds = time.monotonic() - started
        if batch.output_file_id is None or batch.usage is None or batch.request_counts is None:
            sys.exit(f"the batch ended as {batch.status}: {batch.errors}")
        show_answers(questions, client.files.content(batch.output_file_id).text, most=9)
        usage, counts = batch.usage, batch.request_counts
        cached = usage.input_tokens_details.cached_tokens
        console.print(
            f"\n{counts.completed} answered, {counts.failed} failed in {seconds:.1f} s with model load; "
            f"{usage.input_tokens} prompt tokens, {cached} of them shared and not computed again "
            f"({cached / usage.input_tokens:.0%}); {usage.output_tokens} output tokens.",
            highlight=False,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else QUESTIONS)
