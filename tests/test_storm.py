"""Fifty kills and more over batches of good, bad and failing lines: all is answered, once, in whole files.

Real processes of api, keeper and worker under the real supervisor; only the engine is a fake. What is hit at
random moments: each of them, all of them at once, every connection of the database, the disk.
"""

import itertools
import json
import os
import random
import resource
import shutil
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil
import psycopg
import pytest
from openai.types import Batch
from sqlalchemy import select

from app import serve as serve_module
from app.db.models import LineResult
from app.db.session import Database
from app.outage import OUTAGE
from app.serve import Supervisor, free_port, service_commands
from tests.disk import CannotMount, SmallDisk, mounted

ROOT = Path(__file__).parents[1]
ENDPOINT = "/v1/chat/completions"
TERMINAL = {"completed", "failed", "expired", "cancelled"}
NUM_HITS = 30  # on each database
NUM_AT_WORK = 2  # batches; as soon as fewer are unfinished another comes
PATIENCE_SECONDS = 120.0
DISK_MEGABYTES = 64
LEASE_SECONDS = 10  # far more than a heartbeat on a busy machine takes

T = TypeVar("T")

WORKER = f"""
import sys
from pathlib import Path
from app.cli import stop_on_signals
from app.lifeline import follow_parent
from app.settings import load_settings
from app.worker_process import run_worker
from tests.fakes import FakeEngine

follow_parent()
engine = FakeEngine(step_seconds=0.1, per_step=3, kv_tokens=300, run_log=Path(sys.argv[1]))
run_worker(load_settings(lease_seconds={LEASE_SECONDS}), lambda: engine, stop_on_signals())
"""


@dataclass
class Job:
    """A submitted batch. expected: what each line has to become, by custom id: a status code."""

    batch_id: str
    expected: dict[str, int]
    is_invalid: bool
    is_cancelled: bool = False
    has_ended: bool = False


@dataclass
class Storm:
    """The service under fire, and what has been asked of it."""

    client: openai.OpenAI
    database: Database
    disk: SmallDisk | None
    run_log: Path
    rng: random.Random
    jobs: list[Job] = field(default_factory=list)
    snapshots: list[tuple[set[int], int]] = field(default_factory=list)

    def persist(self, call: Callable[[], T]) -> T:
        """What `call` returns, tried again while the service is down or out of order, as a client would."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except (openai.APIConnectionError, openai.InternalServerError):
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.1)

    def submit(self) -> None:
        number = len(self.jobs)
        is_invalid = number % 7 == 3
        expected: dict[str, int] = {}
        content = b""
        for i in range(self.rng.randint(100, 200)):
            custom_id, kind = f"{number}-{i}", self.rng.random()
            body = {"model": "m", "messages": [{"role": "user", "content": f"q{i}"}], "max_tokens": 9}
            expected[custom_id] = 200
            if kind < 0.05:  # refused by its values
                body["temperature"] = 9
                expected[custom_id] = 400
            elif kind < 0.1:  # fails in the engine, which has no memory for it
                body["max_tokens"] = 500
                expected[custom_id] = 400
            line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
            content += json.dumps(line).encode() + b"\n"
        if is_invalid:
            content += b"{}\n"
        keys = [{"Idempotency-Key": uuid.uuid4().hex} for _ in range(2)]
        file = self.persist(
            lambda: self.client.files.create(
                file=("in.jsonl", content), purpose="batch", extra_headers=keys[0]
            )
        )
        batch = self.persist(
            lambda: self.client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", extra_headers=keys[1]
            )
        )
        assert self.persist(lambda: self.client.files.content(file.id).read()) == content
        self.jobs.append(Job(batch.id, expected, is_invalid))

    def batch(self, job: Job) -> Batch:
        return self.persist(lambda: self.client.batches.retrieve(job.batch_id))

    def unfinished(self) -> list[Job]:
        running = [job for job in self.jobs if not job.has_ended]
        for job in running:
            job.has_ended = self.batch(job).status in TERMINAL
        return [job for job in running if not job.has_ended]

    def cancel_one(self) -> None:
        """Some batch in the middle of its run, if there is one."""
        for job in self.unfinished():
            if self.batch(job).status == "in_progress":
                try:
                    self.persist(lambda job=job: self.client.batches.cancel(job.batch_id))
                except openai.ConflictError:
                    continue  # it has just ended
                job.is_cancelled = True
                return

    def note_committed(self) -> None:
        """Lines whose results are stored by now, and how many runs had been noted after that."""
        try:
            with self.database.read() as session:
                committed = set(session.scalars(select(LineResult.request_line_id)))
        except OUTAGE:
            return  # our own connection was cut, or the disk is full: there will be other moments
        self.snapshots.append((committed, len(self.runs())))

    def runs(self) -> list[int]:
        return [int(line) for line in self.run_log.read_text().split()] if self.run_log.exists() else []

    # What can be hit.

    def kill(self, name: str) -> None:
        """kill -9 of one process of this kind, or of all processes."""
        roles = {child: _role(child) for child in psutil.Process().children()}
        victims = [child for child, role in roles.items() if role and name in ("", role)]
        for victim in self.rng.sample(victims, min(1, len(victims))) if name else victims:
            victim.kill()

    def cut_connections(self) -> None:
        """Ends every session of the database but this one."""
        url = self.database.url.render_as_string(hide_password=False).replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    def fill_disk(self) -> None:
        """For a moment nothing more can be written."""
        pause = self.rng.uniform(0.5, 2)
        if self.disk is not None:
            self.disk.fill()
            time.sleep(pause)
            self.disk.free()
            return
        # Where nothing can be mounted: no file of api and keeper may grow.
        victims = [child for child in psutil.Process().children() if _role(child) in ("api", "keeper")]
        for limit in (0, resource.RLIM_INFINITY):
            for victim in victims:
                victim.rlimit(psutil.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            time.sleep(pause)

    # What must be true in the end.

    def check(self, job: Job) -> None:
        batch = self.batch(job)
        assert batch.request_counts is not None
        counts = batch.request_counts
        if job.is_invalid:
            assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
            return
        outputs, errors = self.lines(batch.output_file_id), self.lines(batch.error_file_id)
        answered = Counter(line["custom_id"] for line in outputs + errors)
        assert answered == Counter(job.expected.keys()), "a line is lost, or there twice"
        statuses = {line["custom_id"]: _status(line) for line in outputs + errors}
        num_dropped = sum(status is None for status in statuses.values())
        assert (counts.total, counts.completed) == (len(job.expected), len(outputs))
        assert counts.failed == len(errors) - num_dropped
        assert batch.status == ("cancelled" if num_dropped or batch.cancelled_at else "completed")
        assert job.is_cancelled or batch.status == "completed"
        assert all(job.expected[id_] == status for id_, status in statuses.items() if status is not None)
        assert all(_status(line) == 200 for line in outputs)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        file = self.persist(lambda: self.client.files.retrieve(file_id))
        content = self.persist(lambda: self.client.files.content(file_id).read())
        assert len(content) == file.bytes
        assert content.endswith(b"\n")
        return [json.loads(line) for line in content.splitlines()]

    def check_runs(self) -> None:
        runs = self.runs()
        for committed, num_runs in self.snapshots:
            assert not committed.intersection(runs[num_runs:]), "a committed line ran again"


def _status(line: dict[str, Any]) -> int | None:
    """Of the line's response; None: the line was dropped by a cancel."""
    if line["response"] is None:
        assert line["error"]["code"] == "batch_cancelled"
        return None
    return int(line["response"]["status_code"])


def _role(process: psutil.Process) -> str:
    """Which of the service's processes this is; nothing for any other."""
    try:
        command = process.cmdline()
    except psutil.Error:  # it has just ended
        return ""
    if WORKER in command:
        return "worker"
    return next((name for name in ("api", "keeper") if name in command), "")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk | None]:
    """Where the service's data lies; None: nothing can be mounted here."""
    try:
        with mounted(tmp_path / "disk", DISK_MEGABYTES) as small_disk:
            yield small_disk
    except CannotMount:
        (tmp_path / "disk").mkdir(exist_ok=True)
        yield None


@pytest.fixture(params=["sqlite", "postgres"])
def storm(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    disk: SmallDisk | None,
    sqlite_template: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Storm]:
    """On SQLite all lies on the small disk, and one worker runs; on Postgres the files do, and two run."""
    monkeypatch.setattr(serve_module, "LONGEST_BACKOFF_SECONDS", serve_module.FIRST_BACKOFF_SECONDS)
    data_dir = tmp_path / "disk" / "data"
    data_dir.mkdir()
    if request.param == "sqlite":
        database_url, num_workers = f"sqlite:///{data_dir / 'batchllm.db'}", 1
        shutil.copy(sqlite_template, data_dir / "batchllm.db")
    else:
        database_url, num_workers = request.getfixturevalue("postgres_url"), 2
    port = free_port("127.0.0.1")
    settings = {"DATA_DIR": data_dir, "DATABASE_URL": database_url, "PORT": port, "MODEL": "m"}
    environment = {f"BATCHLLM_{name}": str(value) for name, value in settings.items()}
    commands = {name: command for name, command in service_commands().items() if name != "worker"}
    run_log = tmp_path / "runs"
    commands |= {f"worker {n}": [sys.executable, "-c", WORKER, str(run_log)] for n in range(num_workers)}
    database = Database(database_url)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0, timeout=30)
    with _supervised(commands, os.environ | environment | {"PYTHONPATH": str(ROOT)}, port):
        yield Storm(client, database, disk, run_log, random.Random(0))
    database.dispose()


@contextmanager
def _supervised(commands: dict[str, list[str]], environment: dict[str, str], port: int) -> Iterator[None]:
    stop, ready = threading.Event(), threading.Event()
    url = f"http://127.0.0.1:{port}/readyz"
    supervisor = Supervisor(commands, environment, ready_url=url, on_ready=ready.set)
    thread = threading.Thread(target=supervisor.run, args=[stop])
    thread.start()
    try:
        assert ready.wait(PATIENCE_SECONDS)
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_everything_is_answered_once_whatever_is_hit(storm: Storm) -> None:
    hits: dict[str, Callable[[], None]] = {
        "api": lambda: storm.kill("api"),
        "keeper": lambda: storm.kill("keeper"),
        "worker": lambda: storm.kill("worker"),
        "all": lambda: storm.kill(""),
        "disk": storm.fill_disk,
    }
    if not storm.database.is_sqlite:
        hits["connections"] = storm.cut_connections
    names = [name for name, _ in zip(itertools.cycle(hits), range(NUM_HITS), strict=False)]
    storm.rng.shuffle(names)
    for number, name in enumerate(names):
        for _ in range(NUM_AT_WORK - len(storm.unfinished())):
            storm.submit()
        if number % 10 == 5:
            storm.cancel_one()
        time.sleep(storm.rng.uniform(0.2, 1.5))
        storm.note_committed()
        hits[name]()
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while unfinished := storm.unfinished():
        assert time.monotonic() < give_up_at, f"no end of {[storm.batch(job) for job in unfinished]}"
        storm.note_committed()
        time.sleep(0.2)
    for job in storm.jobs:
        storm.check(job)
    storm.check_runs()
    listed = list(storm.client.batches.list(limit=5))
    assert {batch.id for batch in listed} == {job.batch_id for job in storm.jobs}
    assert len(listed) == len(storm.jobs), "a repeated request made a second batch"
    num_lines = sum(len(job.expected) for job in storm.jobs)
    ends = dict(Counter(storm.batch(job).status for job in storm.jobs))
    how = "tmpfs" if storm.disk else "limited file size"
    print(f"{dict(Counter(names))} ({how}): {ends}, {num_lines} lines, {len(storm.runs())} runs")
