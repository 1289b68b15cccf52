"""What `batchllm run` says about a job, and how it ends."""

import threading
from collections.abc import Callable
from dataclasses import asdict

import orjson
from rich.console import Console

from app.batch_engine import BatchEngine
from app.job_folder import Job
from app.offline import Interrupted, InvalidInput, Report, run_job
from app.progress import progress_bar
from app.settings import Settings

EXIT_INVALID_INPUT = 2
EXIT_INTERRUPTED = 130


def run_and_report(
    job: Job,
    settings: Settings,
    engine_factory: Callable[[], BatchEngine],
    stop: threading.Event,
    *,
    as_json: bool,
) -> int:
    """Run the job and tell the user, on standard error but for the JSON; the exit code.

    Raises StartupError and what the engine factory raises.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with progress_bar(enabled=not as_json) as show:
            report = run_job(job, settings, engine_factory, stop, show)
    except InvalidInput as invalid:
        for error in invalid.errors:
            place = job.input if error["line"] is None else f"{job.input}:{error['line']}"
            param = "" if error["param"] is None else f" ({error['param']})"
            console.print(f"{place}: {error['code']}{param}: {error['message']}", markup=False)
        console.print(f"Nothing was run: {len(invalid.errors)} errors in the input.")
        return EXIT_INVALID_INPUT
    except Interrupted as interrupted:
        console.print(
            f"Interrupted: {interrupted.num_done} of {interrupted.num_lines} requests are done"
            + ("; the same command goes on from there." if interrupted.num_done else ".")
        )
        return EXIT_INTERRUPTED
    if as_json:
        print(orjson.dumps(asdict(report)).decode(), flush=True)
    else:
        console.print(summary(job, report), markup=False)
    return 0


def summary(job: Job, report: Report) -> str:
    """What happened, for people."""
    failed = f", {report.failed} failed (see {job.errors})" if report.failed else ""
    rate = report.requests / report.seconds
    return (
        f"{report.requests} requests in {report.seconds:.1f} s ({rate:.1f} a second, model loaded in "
        f"{report.load_seconds:.1f} s): {report.completed} completed{failed}.\n"
        f"{report.prompt_tokens} prompt tokens, {report.computed_prompt_tokens} of them computed; "
        f"{report.output_tokens} output tokens. Answers: {job.output}"
    )
