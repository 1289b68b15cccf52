"""A large file through real processes with a fake engine: how fast, and with how much memory.

    python -m benchmarks.bench_service                                   50,000 lines, 200 MB
    python -m benchmarks.bench_service --lines 1000000 --line-bytes 200  a million short ones

The last line is one JSON object: seconds and rates of each stage, peak memory of each process in MiB, and the
longest time in which nothing that a client sees of the batch changed.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.processes import Processes, input_line

POLL_SECONDS = 0.1
GROUP_LINES = 16  # of the file that begin alike, for half of their length
BOUNDARY = "benchmark"
TERMINAL = {"completed", "failed", "expired", "cancelled"}


def write_input(path: Path, num_lines: int, line_bytes: int, max_tokens: int) -> None:
    """Lines of exactly so many bytes each, newline included."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    pool = "".join(rng.choices(letters, k=1 << 20))
    with path.open("w") as file:
        shared = ""
        for number in range(num_lines):
            room = line_bytes - 1 - len(json.dumps(input_line(number, "", max_tokens)))
            if number % GROUP_LINES == 0:
                start = rng.randrange(len(pool) - room // 2)
                shared = pool[start : start + room // 2]
            start = rng.randrange(len(pool) - room)
            text = (shared + pool[start : start + room])[:room]
            file.write(json.dumps(input_line(number, text, max_tokens)) + "\n")


def form(path: Path) -> Iterator[bytes]:
    """The upload's multipart body, a piece in memory at a time."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    yield head.encode()
    with path.open("rb") as file:
        while piece := file.read(1 << 18):
            yield piece
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def upload(client: httpx2.Client, path: Path) -> str:
    """Id of the stored file."""
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = client.post("/files", content=form(path), headers=headers)
    answer.raise_for_status()
    return str(answer.json()["id"])


def create(client: httpx2.Client, file_id: str) -> str:
    """Id of a new batch."""
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answer = client.post("/batches", json=body)
    answer.raise_for_status()
    return str(answer.json()["id"])


class Run:
    """A batch as a client sees it, from its creation to its end.

    entered: monotonic time of each status. first_done, last_done: monotonic times at which the first and all
    lines were seen to be answered, and how many were at the first.
    """

    def __init__(self, client: httpx2.Client, batch_id: str, processes: Processes) -> None:
        self._client = client
        self._batch_id = batch_id
        self._processes = processes
        self.entered: dict[str, float] = {}
        self.longest_silence = 0.0
        self.first_done: tuple[float, int] | None = None
        self.last_done: float | None = None
        self.batch: dict[str, Any] = {}

    def watch(self) -> None:
        seen, seen_at = None, time.monotonic()
        while not self.batch or self.batch["status"] not in TERMINAL:
            self._processes.check()
            self.batch = self._client.get(f"/batches/{self._batch_id}").raise_for_status().json()
            now = time.monotonic()
            self.entered.setdefault(self.batch["status"], now)
            self._note_done(now)
            shown = {key: self.batch[key] for key in ("status", "request_counts", "progress")}
            if shown != seen:
                self.longest_silence = max(self.longest_silence, now - seen_at)
                seen, seen_at = shown, now
            time.sleep(POLL_SECONDS)

    def _note_done(self, now: float) -> None:
        counts = self.batch["request_counts"]
        num_done = counts["completed"] + counts["failed"]
        if num_done and self.first_done is None:
            self.first_done = now, num_done
        if self.last_done is None and num_done == counts["total"] > 0:
            self.last_done = now


def download(client: httpx2.Client, file_id: str) -> tuple[int, int]:
    """Bytes and lines of the file; each custom id must be there once."""
    num_bytes, custom_ids, rest = 0, set(), b""
    with client.stream("GET", f"/files/{file_id}/content") as answer:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            num_bytes += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                custom_id = json.loads(line)["custom_id"]
                assert custom_id not in custom_ids, custom_id
                custom_ids.add(custom_id)
    assert not rest
    return num_bytes, len(custom_ids)


def logged_validation(processes: Processes) -> float:
    """Seconds that the keeper says the validation took."""
    for line in processes.log_of("keeper").read_text().splitlines():
        event = json.loads(line)
        if "validation_seconds" in event:
            return float(event["validation_seconds"])
    raise AssertionError("the keeper's log tells nothing of the validation")


def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "in.jsonl"
    write_input(source, args.lines, args.line_bytes, args.max_tokens)
    num_bytes = source.stat().st_size
    settings: dict[str, object] = {
        "MAX_REQUESTS_PER_BATCH": max(50_000, args.lines),
        "MAX_FILE_BYTES": max(200_000_000, num_bytes),
    }
    if args.database_url:
        settings["DATABASE_URL"] = args.database_url
    seconds: dict[str, float] = {}
    with Processes(folder / "data", settings, ["--per-step", str(args.per_step)]) as processes:
        with httpx2.Client(base_url=processes.url, timeout=120) as client:
            started = time.monotonic()
            file_id = upload(client, source)
            seconds["upload"] = time.monotonic() - started
            run = Run(client, create(client, file_id), processes)
            run.watch()
            assert run.batch["status"] == "completed", run.batch
            assert run.batch["request_counts"]["completed"] == args.lines, run.batch
            started = time.monotonic()
            output_bytes, num_outputs = download(client, run.batch["output_file_id"])
            seconds["download"] = time.monotonic() - started
            assert num_outputs == args.lines, num_outputs
        seconds["validation"] = logged_validation(processes)
        peaks = processes.peak_mib()
    assert run.first_done is not None
    assert run.last_done is not None
    first_at, num_first = run.first_done
    seconds |= {
        "loading": first_at - run.entered["in_progress"],
        "recording": run.last_done - first_at,
        "finalizing": run.entered["completed"] - run.last_done,
    }
    return {
        "lines": args.lines,
        "input_mb": round(num_bytes / 1e6, 1),
        "output_mb": round(output_bytes / 1e6, 1),
        "database": "postgres" if args.database_url else "sqlite",
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "validated_per_second": round(args.lines / seconds["validation"]),
        "recorded_per_second": round((args.lines - num_first) / max(seconds["recording"], POLL_SECONDS)),
        "peak_mib": peaks,
        "longest_silence_seconds": round(run.longest_silence, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A large file through the service with a fake engine.")
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--line-bytes", type=int, default=4_000)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--per-step", type=int, default=256, help="lines that the fake engine ends in a step")
    parser.add_argument("--database-url", help="an empty Postgres database; SQLite without it")
    parser.add_argument("--folder", type=Path, help="for files of the run; a temporary one without it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(json.dumps(bench(args, Path(folder))))


if __name__ == "__main__":
    main()
