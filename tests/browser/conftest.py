"""Real services, and Chromium that looks at their pages."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.service import Service

PATIENCE_MS = 60_000
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--no-sandbox",  # Chromium's own refuses root, which CI is
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    # No skip: pages that nobody has looked at are no passed test.
    assert path is not None, "No Chromium here: install it (Debian: apt-get install chromium)."
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def serve(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Service]]:
    """Starts a service with a tiny model, on data of its own, that stops after the module."""
    started: list[Service] = []

    def start(*, before: Callable[[Path], None] = lambda data_dir: None) -> Service:
        data_dir = tmp_path_factory.mktemp("service")
        before(data_dir)
        settings = {"MODEL": str(tiny_llama_dir), "MODEL_NAME": "tiny", "KV_MEMORY": "4MiB", "THREADS": "1"}
        running = Service(data_dir, {f"BATCHLLM_{name}": value for name, value in settings.items()})
        started.append(running)
        running.start()
        return running

    yield start
    assert [running.stop() for running in started] == [0] * len(started)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens pages in contexts of their own; whatever the console calls an error fails the test."""
    contexts, complaints = [], []

    def open_(base_url: str) -> Page:
        context = browser.new_context(base_url=base_url, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda entry: complaints.append(entry.text) if entry.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
