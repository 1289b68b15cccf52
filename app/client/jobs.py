"""The commands for jobs of a running service. People read standard error; scripts get --json."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import typer
from rich.console import Console
from rich.table import Table

from app.client.remote import Json, Refused, Remote, Unreachable
from app.client.watch import TERMINAL, details, duration, watch
from app.whole_file import whole_file

EXIT_NOT_COMPLETED = 1  # the batch failed, expired or was cancelled; or is not over
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130

console = Console(stderr=True, highlight=False)


@contextmanager
def service(command: str, url: str, key: str | None) -> Iterator[Remote]:
    """The service at `url`. What it refuses, and where there is none, becomes a sentence and an exit code."""
    try:
        remote = Remote(url, key)
        try:
            yield remote
        finally:
            remote.close()
    except (Refused, Unreachable) as error:
        typer.echo(f"batchllm {command}: {error}", err=True)
        raise typer.Exit(EXIT_REFUSED) from error


def submit(
    remote: Remote,
    source: Path,
    *,
    window: str,
    priority: int,
    metadata: dict[str, str],
    watched: bool,
    as_json: bool,
) -> int:
    """Upload and start a batch, then watch it if that is wanted; the exit code. Raises Refused."""
    if not source.is_file():
        raise Refused(f"The input {source} is not a file that can be read: check the path.")
    endpoint = _endpoint_of(source)
    file = remote.upload(source)
    request = {
        "input_file_id": file["id"],
        "endpoint": endpoint,
        "completion_window": window,
        "priority": priority,
        "metadata": metadata or None,
    }
    batch = remote.post("/v1/batches", request)
    if not as_json:
        console.print(f"Submitted {source} as {batch['id']}.", markup=False, soft_wrap=True)
    return follow(remote, batch, watched=watched, as_json=as_json)


def follow(remote: Remote, batch: Json, *, watched: bool, as_json: bool) -> int:
    """Watch the batch to its end if that is wanted, and tell how it stands; the exit code."""
    if watched:
        try:
            batch = watch(remote, batch["id"], Console(stderr=True, quiet=as_json))
        except KeyboardInterrupt:
            console.print(f"The batch goes on. Watch it again:\nbatchllm status {batch['id']} --watch")
            return EXIT_INTERRUPTED
    if as_json:
        print_json(batch)
    elif watched:
        show_end(batch)
    else:
        typer.echo(batch["id"])
    return EXIT_NOT_COMPLETED if watched and batch["status"] != "completed" else 0


def show_end(batch: Json) -> None:
    """How a batch ended and what to do next."""
    for error in (batch["errors"] or {"data": []})["data"]:
        place = "" if error["line"] is None else f"line {error['line']}: "
        console.print(f"{place}{error['code']}: {error['message']}", markup=False, soft_wrap=True)
    if batch["output_file_id"] or batch["error_file_id"]:
        console.print(f"Fetch the results: batchllm results {batch['id']} -o answers.jsonl", soft_wrap=True)


def show_list(batches: Iterable[Json]) -> None:
    """A table that fits 80 columns."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("id", "status"):
        table.add_column(name, no_wrap=True)
    for name in ("done", "failed", "age"):
        table.add_column(name, no_wrap=True, justify="right")
    for batch in batches:
        counts = batch["request_counts"]
        status = "paused" if batch["paused_at"] and batch["status"] not in TERMINAL else batch["status"]
        num_done = counts["completed"] + counts["failed"]
        age = duration(max(int(time.time()) - batch["created_at"], 0))
        table.add_row(batch["id"], status, f"{num_done}/{counts['total']}", str(counts["failed"]), age)
    Console(highlight=False).print(table)


def show_status(batch: Json) -> None:
    """What is known of one batch, for people."""
    counts, usage = batch["request_counts"], batch["usage"]
    typer.echo(f"{batch['id']}: {batch['status']}")
    done = counts["completed"] + counts["failed"]
    typer.echo(f"lines    {done} of {counts['total']} done, {counts['failed']} failed")
    typer.echo(f"now      {details(batch, None)}")
    if usage is not None:
        cached = usage["input_tokens_details"]["cached_tokens"]
        typer.echo(
            f"tokens   {usage['input_tokens']:,} prompt, {cached:,} of them saved; "
            f"{usage['output_tokens']:,} output"
        )
    typer.echo(f"input    {batch['input_file_id']} for {batch['endpoint']}, model {batch['model'] or '?'}")
    for name, value in (batch["metadata"] or {}).items():
        typer.echo(f"metadata {name}={value}")
    for error in (batch["errors"] or {"data": []})["data"]:
        typer.echo(f"error    line {error['line']}: {error['code']}: {error['message']}")


def results(remote: Remote, batch_id: str, output: Path | None, errors: Path | None, partial: bool) -> int:
    """Write answers to `output` or standard output, and failed lines to `errors` if there are any."""
    batch = remote.batch(batch_id)
    is_over = batch["status"] in TERMINAL
    if not is_over and not partial:
        raise Refused(
            f"{batch_id} is {batch['status']}: wait with 'batchllm status {batch_id} --watch', or take what "
            "is there with --partial."
        )
    with _written(output) as target:
        _fetch(remote, batch, is_over, "output_file_id", "completed", target)
    counts = batch["request_counts"]
    has_errors = batch["error_file_id"] is not None if is_over else counts["failed"] > 0
    if has_errors and errors is not None:
        with _written(errors) as target:
            _fetch(remote, batch, is_over, "error_file_id", "failed", target)
    hint = f" (see {errors})" if has_errors and errors is not None else ""
    left = "" if is_over else f"; {counts['total'] - counts['completed'] - counts['failed']} still to come"
    console.print(
        f"{counts['completed']} answers, {counts['failed']} failed{hint}{left}.", markup=False, soft_wrap=True
    )
    return 0 if batch["status"] == "completed" or partial else EXIT_NOT_COMPLETED


def _fetch(remote: Remote, batch: Json, is_over: bool, file_key: str, status: str, target: BinaryIO) -> None:
    """Finished batches have files; others tell their lines so far."""
    if not is_over:
        remote.download(f"/v1/batches/{batch['id']}/results", target, status=status)
    elif batch[file_key] is not None:
        remote.download(f"/v1/files/{batch[file_key]}/content", target)


@contextmanager
def _written(path: Path | None) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all; None: standard output. Raises Refused."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with whole_file(path) as unfinished, unfinished.open("wb") as target:
            yield target
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}): choose another file.") from error


def print_json(value: Any) -> None:
    typer.echo(orjson.dumps(value).decode())


def _endpoint_of(source: Path) -> str:
    """What the first line names; where it names none, the service's validation says so."""
    with source.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        return str(orjson.loads(first.removeprefix(b"\xef\xbb\xbf"))["url"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "/v1/chat/completions"
