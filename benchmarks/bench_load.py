"""Many clients at once: how long do they wait, and what does the worker notice of them?

    python -m benchmarks.bench_load

A worker with a fake engine of fixed steps runs a batch, first alone, then while 200 clients each poll a batch
every 2 s and 20 uploads of 5 MB come in together. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.bench_service import create, upload, write_input
from benchmarks.processes import Processes, percentile

STEP_SECONDS = 0.05
PER_STEP = 4
POLL_SECONDS = 2.0
UPLOAD_BYTES = 5_000_000
LINE_BYTES = 500
SETTLE_SECONDS = 3.0  # after the first answered line, before the rate alone is taken
PATIENCE_SECONDS = 60.0


def wait_for_answers(client: httpx2.Client, batch_id: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not client.get(f"/batches/{batch_id}").raise_for_status().json()["request_counts"]["completed"]:
        if time.monotonic() > give_up_at:
            raise TimeoutError("no line is answered")
        time.sleep(0.2)


async def poll_all(url: str, batch_ids: Sequence[str], num_clients: int, seconds: float) -> list[float]:
    """Seconds that each answer took; raises on an answer that is none."""
    took: list[float] = []
    stop_at = time.monotonic() + seconds

    async def poll(client: httpx2.AsyncClient, number: int) -> None:
        await asyncio.sleep(number * POLL_SECONDS / num_clients)
        while time.monotonic() < stop_at:
            started = time.monotonic()
            answer = await client.get(f"/batches/{batch_ids[number % len(batch_ids)]}")
            answer.raise_for_status()
            took.append(time.monotonic() - started)
            await asyncio.sleep(max(0.0, started + POLL_SECONDS - time.monotonic()))

    limits = httpx2.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    async with (
        httpx2.AsyncClient(base_url=url, timeout=60, limits=limits, verify=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(num_clients):
            tasks.create_task(poll(client, number))
    return took


def upload_all(url: str, path: Path, num_uploads: int, delay_seconds: float) -> None:
    """In a process of its own: what it does must not be measured as the pollers' waiting."""
    time.sleep(delay_seconds)

    def once(_: int) -> float:
        with httpx2.Client(base_url=url, timeout=60, verify=False) as client:
            started = time.monotonic()
            upload(client, path)
            return time.monotonic() - started

    with ThreadPoolExecutor(num_uploads) as pool:
        took = list(pool.map(once, range(num_uploads)))
    path.with_suffix(".seconds").write_text(json.dumps(took))


def steps_per_second(step_log: Path, start: float, stop: float) -> float:
    times = [float(line) for line in step_log.read_text().splitlines()]
    within = [at for at in times if start <= at < stop]
    return (len(within) - 1) / (within[-1] - within[0])


def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source, large, step_log = folder / "in.jsonl", folder / "large.jsonl", folder / "steps"
    steps = (args.alone_seconds + args.loaded_seconds + 30) / STEP_SECONDS
    write_input(source, round(steps * PER_STEP), LINE_BYTES, max_tokens=8)
    write_input(large, UPLOAD_BYTES // LINE_BYTES, LINE_BYTES, max_tokens=8)
    options = ["--step-seconds", str(STEP_SECONDS), "--per-step", str(PER_STEP), "--step-log", str(step_log)]
    settings = {"DATABASE_URL": args.database_url} if args.database_url else {}
    with Processes(folder / "data", settings, options) as processes:
        with httpx2.Client(base_url=processes.url, timeout=60) as client:
            file_id = upload(client, source)
            batch_ids = [create(client, file_id) for _ in range(4)]  # one runs, the others wait
            wait_for_answers(client, batch_ids[0])
        time.sleep(SETTLE_SECONDS)
        alone_at = time.time()
        time.sleep(args.alone_seconds)
        loaded_at = time.time()
        uploader = multiprocessing.get_context("spawn").Process(
            target=upload_all, args=[processes.url, large, args.uploads, args.loaded_seconds / 4]
        )
        uploader.start()
        took = asyncio.run(poll_all(processes.url, batch_ids, args.clients, args.loaded_seconds))
        end = time.time()
        uploader.join()
        processes.check()
        peaks = processes.peak_mib()
        alone = steps_per_second(step_log, alone_at, loaded_at)
        loaded = steps_per_second(step_log, loaded_at, end)
    if uploader.exitcode != 0:
        raise RuntimeError("an upload failed")
    uploads = json.loads(large.with_suffix(".seconds").read_text())
    return {
        "database": "postgres" if args.database_url else "sqlite",
        "clients": args.clients,
        "polls": len(took),
        "poll_ms": {f"p{share:g}": round(percentile(took, share / 100) * 1e3, 1) for share in (50, 95, 99)}
        | {"max": round(max(took) * 1e3, 1)},
        "uploads": len(uploads),
        "slowest_upload_seconds": round(max(uploads), 2),
        "steps_per_second": {"alone": round(alone, 3), "loaded": round(loaded, 3)},
        "step_rate_kept": round(loaded / alone, 3),
        "peak_mib": peaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients and uploads beside a worker of fixed steps.")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--uploads", type=int, default=20)
    parser.add_argument("--alone-seconds", type=float, default=15)
    parser.add_argument("--loaded-seconds", type=float, default=40)
    parser.add_argument("--database-url", help="an empty Postgres database; SQLite without it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(bench(args, Path(folder))))


if __name__ == "__main__":
    main()
