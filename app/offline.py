"""`run`: a job without HTTP. The service's own path in one process, on a database beside the output."""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from app.batch_engine import BatchEngine
from app.db.batches import create_batch, get_batch, list_batches
from app.db.files import create_file, get_file
from app.db.models import Batch
from app.db.schema import migrate
from app.db.session import Database
from app.job_folder import Job, check_paths, endpoint_of, held_folder, private_settings
from app.keeper import Keeper
from app.lifecycle import TERMINAL, BatchStatus
from app.outage import OUTAGE, reason
from app.progress import OnProgress
from app.settings import DAY_SECONDS, Settings, StartupError
from app.stopping import signals_raise
from app.storage import open_storage
from app.whole_file import whole_file
from app.worker import Progress, Worker
from engine.stats import EngineStats

WINDOW_DAYS = 3650  # a job of one's own has no deadline
_COPY_BYTES = 1024 * 1024


class InvalidInput(Exception):
    """Lines of the input are invalid and nothing ran; `errors` lists them as a batch shows them."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


class Interrupted(Exception):
    """Asked to stop; what is finished is kept for the next try."""

    def __init__(self, num_done: int, num_lines: int) -> None:
        super().__init__(f"{num_done} of {num_lines}")
        self.num_done, self.num_lines = num_done, num_lines


@dataclass(frozen=True, slots=True)
class Report:
    """What a job did. `seconds` leaves out the loading of the model; the engine's counts are this run's."""

    requests: int
    completed: int
    failed: int
    seconds: float
    load_seconds: float
    plan_seconds: float
    prompt_tokens: int
    computed_prompt_tokens: int
    recomputed_tokens: int
    output_tokens: int
    steps: int
    preemptions: int
    peak_kv_bytes: int


def run_job(
    job: Job,
    settings: Settings,
    engine_factory: Callable[[], BatchEngine],
    stop: threading.Event,
    on_progress: OnProgress,
) -> Report:
    """Run the job to its end, from where an earlier try left it.

    Raises StartupError, InvalidInput, Interrupted, and what the engine factory raises.
    """
    started = time.monotonic()
    check_paths(job)
    try:
        with held_folder(job, settings):
            run = _OfflineRun(job, private_settings(job, settings), engine_factory, stop, on_progress)
            try:
                run.finish()
            except BaseException:
                if not run.may_hold_results:
                    shutil.rmtree(job.folder)  # nothing in it is worth another try
                raise
            finally:
                run.close()
            shutil.rmtree(job.folder)
    except (OSError, *OUTAGE) as error:
        place = getattr(error, "filename", None) or job.folder
        words = getattr(error, "strerror", None) or reason(error)
        raise StartupError(
            f"{place} cannot be used ({words}): make room or check permissions, "
            "and run the same command again."
        ) from error
    return run.report(time.monotonic() - started)


class _OfflineRun:
    """One try at a job: keeper, worker and keeper again, over the job's own database."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        engine_factory: Callable[[], BatchEngine],
        stop: threading.Event,
        on_progress: OnProgress,
    ) -> None:
        self._job = job
        self._settings = settings
        self._engine_factory = engine_factory
        self._stop = stop
        self._on_progress = on_progress
        self._stats = EngineStats()
        self._build_seconds = 0.0
        self._database = Database(settings.resolved_database_url)
        self._was_here = (settings.data_dir / "batchllm.db").exists()  # of an earlier try
        self._storage = open_storage(settings)
        self._keeper = Keeper(self._database, self._storage, settings)
        self._batch: Batch | None = None  # as last read
        self._is_computing = False  # results may be there that `_batch` does not show

    @property
    def may_hold_results(self) -> bool:
        """Whether a later try has something to go on from, as far as is known."""
        is_unread = self._was_here and self._batch is None
        return is_unread or self._is_computing or self._num_done > 0

    @property
    def _num_done(self) -> int:
        return 0 if self._batch is None else self._batch.completed + self._batch.failed

    def close(self) -> None:
        self._database.dispose()

    def finish(self) -> None:
        """Bring the job to its end and put the files in place."""
        migrate(self._database)
        batch = self._find_or_create()
        while batch.status == BatchStatus.VALIDATING:
            batch = self._tick()
        if batch.status == BatchStatus.FAILED:
            raise InvalidInput(batch.errors or [])
        if batch.status == BatchStatus.IN_PROGRESS:
            batch = self._compute(batch)
        while batch.status not in TERMINAL:
            batch = self._tick()
        self._put_in_place(batch.output_file_id, self._job.output)
        if batch.error_file_id is None:
            self._job.errors.unlink(missing_ok=True)  # of an earlier job: this one has none
        else:
            self._put_in_place(batch.error_file_id, self._job.errors)

    def report(self, seconds: float) -> Report:
        assert self._batch is not None
        told = {one.name for one in fields(Report)}
        counts = {name: count for name, count in asdict(self._stats).items() if name in told}
        counts["load_seconds"] = self._build_seconds
        return Report(
            requests=self._batch.total,
            completed=self._batch.completed,
            failed=self._batch.failed,
            seconds=seconds - self._build_seconds,
            **counts,
        )

    def _find_or_create(self) -> Batch:
        with self._database.read() as session:
            batches, _ = list_batches(session, after=None, limit=1)
        if batches:
            self._batch = batches[0]
            return batches[0]
        with self._job.input.open("rb") as source, self._storage.create() as blob:
            while chunk := source.read(_COPY_BYTES):
                blob.write(chunk)
            key = blob.commit()
        with self._database.begin() as session:
            file = create_file(
                session,
                purpose="batch",
                filename=self._job.input.name,
                num_bytes=blob.num_bytes,
                storage_key=key,
                expires_seconds=None,
            )
            self._batch = create_batch(
                session,
                input_file_id=file.id,
                endpoint=endpoint_of(self._job.input),
                completion_window=f"{WINDOW_DAYS}d",
                window_seconds=WINDOW_DAYS * DAY_SECONDS,
                metadata=None,
                validation=self._job.validation,
            )
        return self._batch

    def _tick(self) -> Batch:
        """One round of the keeper. Raises Interrupted if asked to stop."""
        if self._stop.is_set():
            self._interrupt()
        self._keeper.tick()
        return self._reload()

    def _reload(self) -> Batch:
        assert self._batch is not None
        with self._database.read() as session:
            batch = get_batch(session, self._batch.id)
        assert batch is not None, self._batch.id
        self._batch = batch
        return batch

    def _compute(self, batch: Batch) -> Batch:
        started = time.monotonic()
        try:
            with signals_raise(KeyboardInterrupt):
                engine = self._engine_factory()
        except KeyboardInterrupt:
            self._interrupt()
        self._build_seconds = time.monotonic() - started
        num_before = self._num_done

        def show(progress: Progress) -> None:
            num_done = num_before + progress.num_completed + progress.num_failed
            self._on_progress(num_done, batch.total)

        worker = Worker(self._database, self._storage, self._settings, lambda: engine)
        self._is_computing = True
        try:
            worker.run(self._stop, show, until_idle=True)
        finally:
            batch = self._reload()
            self._is_computing = False
        self._stats = engine.stats
        if batch.status == BatchStatus.IN_PROGRESS:
            self._interrupt()
        return batch

    def _interrupt(self) -> NoReturn:
        assert self._batch is not None
        raise Interrupted(self._num_done, self._batch.total)

    def _put_in_place(self, file_id: str | None, target: Path) -> None:
        """The file's bytes under its final name, whole or not at all; no file at all gives an empty one."""
        try:
            with whole_file(target) as unfinished, unfinished.open("wb") as copy:
                if file_id is not None:
                    with self._database.read() as session:
                        file = get_file(session, file_id)
                    assert file is not None, file_id
                    with self._storage.open(file.storage_key) as blob:
                        shutil.copyfileobj(blob, copy, _COPY_BYTES)
        except OSError as error:
            raise StartupError(
                f"{target} cannot be written ({error.strerror}): the answers are kept; make room or check "
                "permissions, and run the same command again."
            ) from error
