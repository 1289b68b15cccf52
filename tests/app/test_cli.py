"""The command line as a process: quick, and one sentence where it cannot start."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app, as_environment, own_url
from app.serve import EXIT_CANNOT_START
from tests.app.batches import chat, input_file

ROOT = Path(__file__).parents[2]


def batchllm(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def batchllm_here(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in this process: a tenth of the time, for commands that leave nothing behind in it."""
    ran = CliRunner().invoke(app, [str(one) for one in arguments], env=environment)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return subprocess.CompletedProcess(arguments, ran.exit_code, ran.stdout, ran.stderr)


def check_refusal(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One sentence on standard error, and the code that says that trying again does not help."""
    assert result.returncode == EXIT_CANNOT_START, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_help_needs_no_model_code() -> None:
    code = "import sys; from app.cli import main; sys.argv = ['batchllm', '--help']\n" + (
        "try: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'sqlalchemy', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set()"
    for command in ("serve", "api", "keeper", "worker", "pull", "run", "plan"):
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", ["api", "keeper", "worker"])
def test_an_unwritable_data_directory(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_refusal(
        batchllm(command, "--data-dir", tmp_path / "file" / "data", BATCHLLM_PORT="0"), "BATCHLLM_DATA_DIR"
    )


@pytest.mark.parametrize("command", ["keeper", "worker"])
@pytest.mark.parametrize(
    ("url", "word"),
    [("mysql://x/y", "postgresql://"), ("postgresql://nobody@127.0.0.1:9/none", "cannot be used")],
)
def test_a_wrong_database_url(command: str, url: str, word: str, tmp_path: Path) -> None:
    check_refusal(batchllm(command, "--data-dir", tmp_path / "data", "--database-url", url), word)


def test_a_taken_port_stops_the_whole_service(taken_port: int, tmp_path: Path) -> None:
    result = batchllm("serve", "--port", taken_port, "--data-dir", tmp_path / "data", "--model", "no/model")
    assert result.returncode == EXIT_CANNOT_START
    assert f"Port {taken_port} on 127.0.0.1 is in use: choose another with --port." in result.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    check_refusal(batchllm("keeper", BATCHLLM_LEASE_SECONDS="soon"), "BATCHLLM_LEASE_SECONDS")
    source = tmp_path / "in.jsonl"
    source.write_bytes(input_file([chat("a")]))
    check_refusal(batchllm("run", source, "-o", tmp_path / "out.jsonl", "--kv-memory", "much"), "--kv-memory")


def test_a_model_directory_without_a_model(tmp_path: Path) -> None:
    model = tmp_path / "broken"
    model.mkdir()
    (model / "config.json").write_text("{not json")
    source = tmp_path / "in.jsonl"
    source.write_bytes(input_file([chat("a") | {"model": "broken"}]))
    check_refusal(batchllm("run", source, "-o", tmp_path / "out.jsonl", "--model", model), str(model))
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "in.jsonl"}
    check_refusal(batchllm("pull", model), str(model))


def test_run_without_its_input(tmp_path: Path) -> None:
    check_refusal(batchllm("run", tmp_path / "no.jsonl", "-o", tmp_path / "out.jsonl"), "no.jsonl")


def test_run_into_a_directory(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(input_file([chat("a")]))
    check_refusal(batchllm("run", source, "-o", "."), "give the name of a file")


def test_flags_of_serve_reach_its_processes() -> None:
    flags = {"port": 9000, "data_dir": Path("/data"), "kv_memory": "2GiB", "allow_remote": True}
    assert as_environment(flags) == {
        "BATCHLLM_PORT": "9000",
        "BATCHLLM_DATA_DIR": "/data",
        "BATCHLLM_KV_MEMORY": "2GiB",
        "BATCHLLM_ALLOW_REMOTE": "True",
    }


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_where_the_service_answers(host: str, url: str) -> None:
    assert own_url(host, 8000) == url
