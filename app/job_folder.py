"""A job of `run`: its paths, and the folder beside its output that holds what is unfinished."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from app.lifecycle import Validation
from app.openai.endpoints import ENDPOINTS
from app.settings import Settings, StartupError
from app.whole_file import whole_file

DEFAULT_ENDPOINT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job reads and writes, and what its invalid lines mean."""

    input: Path
    output: Path
    errors: Path
    validation: Validation = Validation.STRICT

    @property
    def folder(self) -> Path:
        """Private to the job, beside its output; it outlives an interruption, not a success."""
        return self.output.with_name(f"{self.output.name}.batchllm")


def endpoint_of(path: Path) -> str:
    """The first endpoint that a line names; where none does, validation will say so."""
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                url = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))["url"]
                if url in ENDPOINTS:
                    return str(url)
    return DEFAULT_ENDPOINT


def private_settings(job: Job, settings: Settings) -> Settings:
    """The settings, with data directory and database of this job alone, and no tenant's limits."""
    alone = {"data_dir": job.folder, "database_url": None, "storage_url": None}
    return settings.model_copy(update=alone | {"max_enqueued_requests": None, "max_enqueued_tokens": None})


def check_paths(job: Job) -> None:
    """Raises StartupError where the job cannot read or write."""
    if not job.input.is_file():
        raise StartupError(f"The input {job.input} is not a file that can be read: check the path.")
    if len({path.resolve() for path in (job.input, job.output, job.errors)}) < 3:
        raise StartupError("Input, output and errors must be three different files: choose other names.")
    for path in (job.output, job.errors):
        if not path.parent.is_dir():
            raise StartupError(f"The directory {path.parent} does not exist: create it or choose another.")
        if path.exists() and not path.is_file():  # a device would be replaced, not written to
            raise StartupError(f"{path} is a directory or a device: give the name of a file.")


@contextmanager
def held_folder(job: Job, settings: Settings) -> Iterator[None]:
    """The job's folder, made or found again, and held against a second run of the same job.

    Raises StartupError, OSError.
    """
    what = {"input_sha256": _sha256(job.input), "model": settings.model}
    if job.validation is Validation.SKIP:  # else as it was written before there was a choice
        what["validation"] = job.validation
    identity = orjson.dumps(what)
    job.folder.mkdir(exist_ok=True)
    lock = FileLock(job.folder / "run.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StartupError(f"Another run is writing {job.output}: wait for it or choose another.") from error
    try:
        note = job.folder / "job.json"
        if not note.exists():
            _write_note(job, note, identity)
        elif note.read_bytes() != identity:
            raise StartupError(
                f"{job.folder} holds an unfinished run of another input or model, or one that differs in "
                "--skip-invalid: delete it to start anew, or choose another output."
            )
        yield
    finally:
        lock.release()


def _write_note(job: Job, note: Path, identity: bytes) -> None:
    """Whole or not at all: half a note would be taken for another job's."""
    try:
        with whole_file(note) as unfinished:
            unfinished.write_bytes(identity)
    except OSError:
        shutil.rmtree(job.folder)
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
