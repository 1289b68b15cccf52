"""A real service, and Chromium that looks at its pages."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.service import Service

SCREENSHOTS = Path(__file__).parents[2] / "ci-artefacts" / "screenshots"

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_MISSING = (
    "No Chromium on this machine, so nobody has looked at the dashboard's pages: "
    "install it (Debian: apt-get install chromium) and run this again."
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(_MISSING)
        pytest.skip(_MISSING)
    with sync_playwright() as playwright:
        # Chromium's own sandbox refuses root, which CI is.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def service(browser: Browser, tmp_path: Path, tiny_llama_dir: Path) -> Iterator[Service]:
    """Empty at first. Asks for the browser only so that none is started in vain."""
    running = Service(
        tmp_path / "data",
        {
            "BATCHLLM_MODEL": str(tiny_llama_dir),
            "BATCHLLM_MODEL_NAME": "tiny",
            "BATCHLLM_KV_MEMORY": "4MiB",
            "BATCHLLM_THREADS": "1",
        },
    )
    running.start()
    yield running
    assert running.stop() == 0
