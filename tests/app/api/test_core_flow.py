"""The core flow through the whole service, by the SDK of today and by the major version before."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

from app.db.session import Database
from app.keeper import Keeper
from app.main import create_app
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from tests.app.api import core_flow
from tests.app.api.conftest import listening
from tests.fakes import FakeEngine


@pytest.fixture
def base_url(database: Database, storage: Storage, tmp_path: Path) -> Iterator[str]:
    """Of a service with keeper and worker, whose engine is a fake."""
    settings = Settings(data_dir=tmp_path / "data", port=0, model="m", model_name="m")
    stop = threading.Event()
    duties: list[Callable[[threading.Event], None]] = [
        Keeper(database, storage, settings).run,
        Worker(database, storage, settings, FakeEngine).run,
    ]
    threads = [threading.Thread(target=duty, args=[stop]) for duty in duties]
    for thread in threads:
        thread.start()
    with listening(create_app(settings, database, storage), settings) as url:
        yield f"{url}/v1"
    stop.set()
    for thread in threads:
        thread.join()


def check(python: Path | str, base_url: str, major: int) -> None:
    command = [str(python), core_flow.__file__, base_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert int(seen.pop("version").partition(".")[0]) == major
    assert seen == {
        "status": "completed",
        "counts": {"total": 21, "completed": 20, "failed": 1},
        "metadata": {"job": "core"},
        "outputs": [f"r{number}" for number in range(20)],
        "errors": ["r20"],
        "files": 4,
        "batches": True,
        "models": ["m"],
        "refusal": "Cannot cancel a batch with status 'completed'.",
    }


def test_by_the_sdk_of_today(base_url: str) -> None:
    check(sys.executable, base_url, major=3)


@pytest.fixture(scope="session")
def python_with_openai_2() -> Path:
    """An interpreter in a virtual environment of its own, kept between runs: the versions share a name."""
    directory = user_cache_path("batchllm") / "tests" / "openai-2"
    directory.parent.mkdir(parents=True, exist_ok=True)
    python, stamp = directory / "bin" / "python", directory / "installed"
    with FileLock(f"{directory}.lock"):
        if not stamp.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
            install = [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "openai>=2,<3",
            ]
            subprocess.run(install, check=True)
            stamp.touch()
    return python


@pytest.mark.long
def test_by_the_sdk_before(base_url: str, python_with_openai_2: Path) -> None:
    check(python_with_openai_2, base_url, major=2)
