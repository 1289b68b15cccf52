"""`doctor`: each check finds what it is for, and says what to do."""

import json
import socket
from pathlib import Path

import pytest

from app.client import doctor
from app.settings import Settings, load_settings
from tests.app.test_cli import batchllm


def settings(tmp_path: Path, **changes: object) -> Settings:
    return load_settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", **changes)


def test_a_sound_machine(tmp_path: Path, tiny_llama_dir: Path) -> None:
    asked = ("--data-dir", tmp_path / "data", "--model", tiny_llama_dir, "--port", 0, "--ops-port", 0)
    result = batchllm("doctor", "--json", *asked)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {check["check"]: check for check in json.loads(result.stdout)["checks"]}
    assert set(found) == {"device", "memory", "compiler", "model", "storage", "database", "port 0"}
    assert all(check["fix"] is None for check in found.values() if check["verdict"] == "ok")
    assert not (tmp_path / "data").exists()  # it changes nothing


def test_what_is_broken_has_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").touch()
    monkeypatch.setenv("CC", "no-such-compiler")
    wrong = settings(
        tmp_path,
        kv_memory=10**15,
        device="cuda",
        model="/no/such/model",
        database_url="postgresql://nobody@127.0.0.1:9/none",
    )
    checks = (doctor.device, doctor.memory, doctor.model, doctor.storage, doctor.database)
    for finding in (check(wrong) for check in checks):
        if finding.check != "memory":  # memory of a GPU is not this machine's
            assert finding.verdict == "broken", finding
            assert finding.fix
    assert doctor.memory(settings(tmp_path, kv_memory=10**15)).verdict == "broken"
    assert doctor.compiler(wrong).verdict == "warning"
    assert doctor.model(settings(tmp_path, model="owner/not-here")).verdict == "warning"


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = doctor.port("127.0.0.1", taken.getsockname()[1], "--port")
    assert (finding.verdict, finding.fix) == ("broken", "Choose another with --port.")


def test_broken_is_an_exit_code(tmp_path: Path) -> None:
    result = batchllm("doctor", "--model", "/no/such/model", "--data-dir", tmp_path, "--port", 0)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout
    assert "-> Name another with --model." in result.stdout
