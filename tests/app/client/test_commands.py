"""Every command for jobs against a real `batchllm serve` with a tiny model."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client.jobs import EXIT_NOT_COMPLETED, EXIT_REFUSED
from tests.app.test_cli import ROOT, batchllm, batchllm_here
from tests.service import Service

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Iterator[Service]:
    settings = {"MODEL": str(tiny_llama_dir), "MODEL_NAME": "tiny", "KV_MEMORY": "4MiB", "THREADS": "1"}
    environment = {f"BATCHLLM_{name}": value for name, value in settings.items()}
    running = Service(tmp_path_factory.mktemp("service"), environment | {"BATCHLLM_LOG_FORMAT": "json"})
    running.start()
    yield running
    assert running.stop() == 0


def write_batch(path: Path, num_lines: int, **body: object) -> Path:
    common = {"model": "tiny", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4}
    lines = (
        {"custom_id": f"q{n}", "method": "POST", "url": "/v1/chat/completions", "body": common | body}
        for n in range(num_lines)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said(service: Service, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = batchllm_here(*arguments, BATCHLLM_URL=service.url)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_from_submit_to_results(service: Service, tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", 5)
    with source.open("a") as lines:
        bad = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}
        line = {"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": bad}
        lines.write(json.dumps(line) + "\n")
    submitted = said(service, "submit", source, "--watch", "--json", "--metadata", "of=a test")
    batch = json.loads(submitted.stdout)
    assert submitted.stderr == ""
    assert (batch["status"], batch["metadata"]) == ("completed", {"of": "a test"})
    assert batch["request_counts"] == {"total": 6, "completed": 5, "failed": 1}

    shown = said(service, "status", batch["id"]).stdout
    assert "completed" in shown
    assert "6 of 6 done, 1 failed" in shown
    assert "metadata of=a test" in shown
    listed = json.loads(said(service, "list", "--json", "--limit", 1).stdout)["data"]
    assert [one["id"] for one in listed] == [batch["id"]]
    assert batch["id"] in said(service, "list").stdout

    output = tmp_path / "answers.jsonl"
    told = said(service, "results", batch["id"], "-o", output).stderr
    errors = tmp_path / "answers.errors.jsonl"
    assert f"5 answers, 1 failed (see {errors})." in told
    assert sorted(ids(output.read_text())) == [f"q{n}" for n in range(5)]
    assert ids(errors.read_text()) == ["bad"]
    assert said(service, "results", batch["id"]).stdout == output.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "answers.jsonl", "answers.errors.jsonl"}

    retry = json.loads(said(service, "retry", batch["id"], "--watch", "--json").stdout)
    assert retry["request_counts"] == {"total": 1, "completed": 0, "failed": 1}


def ids(jsonl: str) -> list[str]:
    return [json.loads(line)["custom_id"] for line in jsonl.splitlines()]


def test_a_running_batch(service: Service, tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", 400, max_tokens=200, ignore_eos=True)
    batch_id = said(service, "submit", source).stdout.strip()
    waiting = said(service, "results", batch_id, code=EXIT_REFUSED)
    assert "--partial" in waiting.stderr
    assert waiting.stdout == ""
    partial = tmp_path / "partial.jsonl"
    assert "still to come" in said(service, "results", batch_id, "--partial", "-o", partial).stderr
    assert "paused" in said(service, "pause", batch_id).stdout
    assert "paused" in said(service, "list").stdout
    assert "paused" not in said(service, "resume", batch_id).stdout
    watcher = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "status", batch_id, "--watch", "--url", service.url],
        cwd=ROOT,
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watcher.stderr is not None
    assert "in_progress" in watcher.stderr.readline()
    watcher.send_signal(signal.SIGINT)
    assert "The batch goes on" in watcher.stderr.read()
    assert watcher.wait() == 130
    cancelled = json.loads(said(service, "cancel", batch_id, "--json").stdout)
    assert cancelled["status"] in ("cancelling", "cancelled")
    ended = said(service, "status", batch_id, "--watch", code=EXIT_NOT_COMPLETED)
    assert "cancelled" in ended.stderr
    again = said(service, "cancel", batch_id)
    assert "cancel" in again.stdout
    assert said(service, "results", batch_id, "-o", partial, code=EXIT_NOT_COMPLETED).stdout == ""


def test_an_invalid_file_is_explained(service: Service, tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", 2, model="unknown")
    result = said(service, "submit", source, "--watch", code=EXIT_NOT_COMPLETED)
    assert "line 1: model_not_found" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("submit", "no.jsonl"), "check the path"),
        (("status", "batch_none"), "No batch found"),
        (("results", "batch_none"), "No batch found"),
        (("retry", "batch_none"), "No batch found"),
        (("list", "--status", "wrong"), "status"),
        (("list", "--url", NOBODY), "batchllm serve"),
        (("list", "--url", "nonsense"), "http://"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    service: Service, arguments: tuple[str, ...], words: str
) -> None:
    result = said(service, *arguments, code=EXIT_REFUSED)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_the_ports_of_operations(service: Service) -> None:
    """The three processes' figures at one address; no worker's port, no key."""
    ops_port = next(
        connection.laddr.port
        for process in service.children()
        if "api" in process.cmdline()
        for connection in process.net_connections()
        if connection.status == "LISTEN" and connection.laddr.port != service.port
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{ops_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "batchllm_worker_step_seconds_count" in text
    assert "batchllm_workers 1.0" in text


def test_keys_are_asked_for_given_and_never_logged(
    tmp_path: Path, tiny_llama_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"MODEL": str(tiny_llama_dir), "MODEL_NAME": "tiny", "THREADS": "1", "LOG_FORMAT": "json"}
    running = Service(tmp_path, {f"BATCHLLM_{name}": value for name, value in settings.items()})
    key = batchllm("keys", "create", "alice", "--data-dir", tmp_path).stdout.strip()
    running.start()
    try:
        assert "BATCHLLM_API_KEY" in said(running, "list", code=EXIT_REFUSED).stderr
        assert "id" in said(running, "list", "--key", key).stdout
        assert batchllm_here("list", BATCHLLM_URL=running.url, BATCHLLM_API_KEY=key).returncode == 0
        secret = [{"role": "user", "content": "A secret question."}]
        source = write_batch(tmp_path / "in.jsonl", 2, messages=secret)
        submitted = json.loads(said(running, "submit", source, "--watch", "--json", "--key", key).stdout)
    finally:
        assert running.stop() == 0
    log = capfd.readouterr().err
    events = [json.loads(line) for line in log.splitlines()]  # all of it is JSON
    assert {event["process"] for event in events} >= {"serve", "worker"}
    assert submitted["id"] in {event.get("batch_id") for event in events}
    assert key not in log
    assert "secret" not in log
