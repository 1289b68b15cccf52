"""`run` without a service, end to end on a fake engine."""

import errno
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy.exc import OperationalError

from app.job_folder import Job
from app.lifecycle import Validation
from app.offline import Interrupted, InvalidInput, Report, run_job
from app.run_command import EXIT_INTERRUPTED, EXIT_INVALID_INPUT, run_and_report
from app.settings import Settings, StartupError
from engine.errors import ModelRefused
from tests.app.batches import chat, input_file
from tests.fakes import FakeEngine


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "unused", model="m", model_name="m")


def run(job: Job, settings: Settings, engine: FakeEngine | None = None) -> Report:
    return run_job(job, settings, lambda: engine or FakeEngine(), threading.Event(), lambda done, total: None)


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_job_from_file_to_file(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat(f"q{i}") for i in range(20)]))
    seen: list[tuple[int, int]] = []
    report = run_job(
        job, settings, FakeEngine, threading.Event(), lambda done, total: seen.append((done, total))
    )
    assert read(job.output).keys() == {f"r{i}" for i in range(20)}
    assert names_in(job.output.parent) == {"in.jsonl", "out.jsonl"}  # nothing else is left
    assert seen[-1] == (20, 20)
    assert (report.requests, report.completed, report.failed) == (20, 20, 0)
    assert report.output_tokens == 100
    assert report.steps == 5
    assert report.seconds > 0


def test_body_errors_go_to_the_error_file(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat("a"), chat("b", temperature=9), chat("c", audio={})]))
    report = run(job, settings)
    assert (report.completed, report.failed) == (1, 2)
    assert read(job.output).keys() == {"r0"}
    errors = read(job.errors)
    assert errors["r1"]["response"]["body"]["error"]["code"] == "invalid_value"
    assert errors["r2"]["response"]["body"]["error"]["code"] == "unsupported_parameter"


def test_completions_are_told_from_the_first_line(job: Job, settings: Settings) -> None:
    job.input.write_bytes(b"\n\n" + input_file([{"model": "m", "prompt": "ab"}], "/v1/completions"))
    run(job, settings)
    assert read(job.output)["r0"]["response"]["body"]["object"] == "text_completion"


def test_an_invalid_input_runs_nothing_and_leaves_nothing(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat("a"), chat("b")]) + b"{broken\n" + input_file([chat("c")]))
    engine = FakeEngine()
    with pytest.raises(InvalidInput) as caught:
        run(job, settings, engine)
    assert [(error["line"], error["code"]) for error in caught.value.errors] == [
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
    ]
    assert not engine.starts
    assert names_in(job.output.parent) == {"in.jsonl"}


def test_invalid_lines_are_skipped_on_request(job: Job, settings: Settings) -> None:
    """Even where the first line does not tell the endpoint."""
    lines = input_file([{"model": "m", "prompt": "ab"}], "/v1/completions")
    job.input.write_bytes(b"{broken\n" + lines + lines)
    report = run(replace(job, validation=Validation.SKIP), settings)
    assert (report.requests, report.completed, report.failed) == (3, 1, 2)
    assert read(job.output).keys() == {"r0"}
    errors = read(job.errors).values()
    assert [error["response"]["body"]["error"]["line"] for error in errors] == [1, 3]
    job.input.write_bytes(b"{broken\n")
    report = run(replace(job, validation=Validation.SKIP), settings)
    assert (report.completed, report.failed, job.output.read_bytes()) == (0, 1, b"")


def test_an_interrupted_job_goes_on_where_it_was(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat(f"q{i}") for i in range(40)]))
    stop = threading.Event()

    class Stopping(FakeEngine):
        def step(self) -> Any:
            if self.stats.steps == 4:
                stop.set()
            return super().step()

    first, second = Stopping(), FakeEngine()
    with pytest.raises(Interrupted) as caught:
        run_job(job, settings, lambda: first, stop, lambda done, total: None)
    assert (caught.value.num_done, caught.value.num_lines) == (20, 40)
    assert not job.output.exists()

    seen: list[tuple[int, int]] = []
    report = run_job(
        job, settings, lambda: second, threading.Event(), lambda done, total: seen.append((done, total))
    )
    assert seen[0][0] >= 20
    assert (report.requests, report.completed) == (40, 40)
    assert set((first.starts + second.starts).values()) == {1}
    assert len(read(job.output)) == 40
    assert names_in(job.output.parent) == {"in.jsonl", "out.jsonl"}


def test_a_second_try_that_cannot_even_begin_keeps_the_first(
    job: Job, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise OperationalError("PRAGMA", None, Exception("disk I/O error"))

    job.input.write_bytes(input_file([chat(f"q{i}") for i in range(40)]))
    first, third = FakeEngine(fail_at_step=3), FakeEngine()
    with pytest.raises(RuntimeError, match="the fake device broke"):
        run(job, settings, first)
    with monkeypatch.context() as patch:
        patch.setattr("app.offline.migrate", away)
        with pytest.raises(StartupError, match="disk I/O error"):
            run(job, settings)
    run(job, settings, third)
    assert len(read(job.output)) == 40
    assert 0 < sum(third.starts.values()) < 40


def test_an_unfinished_job_is_not_mixed_with_another(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat("a")] * 40))
    with pytest.raises(RuntimeError, match="the fake device broke"):
        run(job, settings, FakeEngine(fail_at_step=3))
    job.input.write_bytes(input_file([chat("b")]))
    with pytest.raises(StartupError, match="unfinished run of another input"):
        run(job, settings)


def test_a_refused_model_leaves_nothing(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat("a")]))

    def refuse() -> FakeEngine:
        raise ModelRefused("its rotary frequencies depend on the batch")

    with pytest.raises(ModelRefused):
        run_job(job, settings, refuse, threading.Event(), lambda done, total: None)
    assert names_in(job.output.parent) == {"in.jsonl"}


def test_paths_that_cannot_work(job: Job, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="not a file that can be read"):
        run(job, settings)
    job.input.write_bytes(input_file([chat("a")]))
    with pytest.raises(StartupError, match="does not exist"):
        run(Job(job.input, tmp_path / "nowhere" / "out.jsonl", job.errors), settings)
    with pytest.raises(StartupError, match="three different files"):
        run(Job(job.input, job.input, job.errors), settings)
    with pytest.raises(StartupError, match="is a directory or a device"):
        run(Job(job.input, tmp_path, job.errors), settings)
    assert names_in(tmp_path) == {"in.jsonl"}


def test_an_earlier_error_file_does_not_stay(job: Job, settings: Settings) -> None:
    job.errors.write_text("old\n")
    job.input.write_bytes(input_file([chat("a")]))
    run(job, settings)
    assert not job.errors.exists()


def test_where_every_line_fails_the_output_is_empty(job: Job, settings: Settings) -> None:
    job.input.write_bytes(input_file([chat("a", temperature=9)]))
    assert run(job, settings).failed == 1
    assert job.output.read_bytes() == b""
    assert read(job.errors).keys() == {"r0"}


def report_to_user(job: Job, settings: Settings, **options: Any) -> int:
    return run_and_report(job, settings, FakeEngine, options.pop("stop", threading.Event()), **options)


def test_the_json_is_one_last_line(job: Job, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    job.input.write_bytes(input_file([chat("a"), chat("b", temperature=9)]))
    assert report_to_user(job, settings, as_json=True) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert " ".join(orjson.loads(printed.out)) == (
        "requests completed failed seconds load_seconds plan_seconds prompt_tokens computed_prompt_tokens "
        "recomputed_tokens output_tokens steps preemptions peak_kv_bytes"
    )


def test_the_summary_names_failures(job: Job, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    job.input.write_bytes(input_file([chat("a"), chat("b", temperature=9)]))
    assert report_to_user(job, settings, as_json=False) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"1 completed, 1 failed (see {job.errors})" in printed.err


def test_validation_errors_are_all_listed(
    job: Job, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    job.input.write_bytes(b"[]\n{\n" + input_file([chat("a") | {"model": "other"}]))
    assert report_to_user(job, settings, as_json=True) == EXIT_INVALID_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    for place in (":1: invalid_request", ":2: invalid_json_line", ":3: model_not_found (body.model)"):
        assert f"{job.input}{place}" in printed.err
    assert "Nothing was run: 3 errors" in printed.err


def test_an_interruption_is_told(job: Job, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    job.input.write_bytes(input_file([chat("a")]))
    stop = threading.Event()
    stop.set()
    assert report_to_user(job, settings, as_json=False, stop=stop) == EXIT_INTERRUPTED
    assert "Interrupted" in capsys.readouterr().err
    assert not job.folder.exists()


@pytest.mark.parametrize("name", [".", "..", "/dev/null"])
def test_an_output_that_is_no_file_is_refused_untouched(job: Job, settings: Settings, name: str) -> None:
    job.input.write_bytes(input_file([chat("a")]))
    with pytest.raises(StartupError, match="is a directory or a device"):
        run(Job(job.input, Path(name), job.errors), settings)
    assert not Path("/dev/null").is_file()


def test_a_disk_that_fills_up_at_the_end_keeps_the_answers(
    job: Job, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job.input.write_bytes(input_file([chat("a")]))
    with monkeypatch.context() as patch:
        patch.setattr("app.offline.shutil.copyfileobj", full)
        with pytest.raises(StartupError, match="No space left on device"):
            run(job, settings)
    assert names_in(job.output.parent) == {"in.jsonl", "out.jsonl.batchllm"}  # no half-written output
    report = run_job(job, settings, pytest.fail, threading.Event(), lambda done, total: None)
    assert report.completed == 1
    assert read(job.output).keys() == {"r0"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_the_model(job: Job, settings: Settings, number: signal.Signals) -> None:
    job.input.write_bytes(input_file([chat("a")]))

    def load() -> FakeEngine:
        signal.raise_signal(number)
        pytest.fail("the model was loaded to its end")

    before = signal.signal(number, lambda *_: None)  # as the command line's: it only sets an event
    try:
        with pytest.raises(Interrupted):
            run_job(job, settings, load, threading.Event(), lambda done, total: None)
    finally:
        signal.signal(number, before)
    assert names_in(job.output.parent) == {"in.jsonl"}


@pytest.mark.parametrize(
    "step", ["app.offline.Path.write_bytes", "app.storage.FileWriter.write", "app.offline.migrate"]
)
def test_a_disk_that_is_full_at_the_start_leaves_nothing(
    job: Job, settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(_: object, data: bytes = b"some") -> None:
        if not data:
            return  # takes no space
        if step == "app.offline.migrate":
            raise OperationalError("CREATE", None, Exception("database or disk is full"))
        raise OSError(errno.ENOSPC, "No space left on device")

    job.input.write_bytes(input_file([chat("a")]))
    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        with pytest.raises(StartupError, match=r"out\.jsonl\.batchllm cannot be used .*make room"):
            run(job, settings)
    assert names_in(job.output.parent) == {"in.jsonl"}
    assert run(job, settings).completed == 1
