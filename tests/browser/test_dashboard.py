"""Through real jobs with a real browser: log in, submit, watch, look, pause, cancel, retry, download."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.service import Service

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
SIZES = {"desktop": (1280, 900), "phone": (375, 812)}
SCHEMES = ("light", "dark")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    return serve()


@pytest.fixture
def page(open_page: Callable[[str], Page], service: Service) -> Page:
    return open_page(service.url)


def line(custom_id: str, question: str, **fields: object) -> dict:
    rules = "You are a careful clerk. Answer every question in one word and never explain yourself. "
    messages = [{"role": "system", "content": rules * 3}, {"role": "user", "content": question}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0} | fields
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def submit(page: Page, folder: Path, lines: Sequence[dict]) -> None:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    page.goto("/new")
    page.get_by_label("Batch file").set_input_files(path)
    page.get_by_role("button", name="Upload and start").click()
    expect(page).to_have_url(re.compile(r"/jobs/batch_"))


def look_at(page: Page, name: str) -> None:
    """Screenshots at both widths in both schemes; nothing serious for axe, nothing wider than the screen."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for (size, (width, height)), scheme in product(SIZES.items(), SCHEMES):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.screenshot(path=SCREENSHOTS / f"{name}-{size}-{scheme}.png", full_page=True, caret="initial")
        found = Axe().run(page).response["violations"]
        serious = [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], f"{name}, {size}, {scheme}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name}, {size}"
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")


def test_a_job_from_upload_to_download(page: Page, tmp_path: Path) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    look_at(page, "empty")
    page.goto("/new")
    look_at(page, "new")
    lines = [
        line(f"invoice-{topic}-{n}", f"About invoice {topic}, which came late again: question {n}?")
        for topic in range(6)
        for n in range(2 + 3 * topic)
    ]
    lines += [line("too-hot", "x", temperature=9), line("odd", "<b>x</b>", web_search_options={})]
    submit(page, tmp_path, lines)
    # No reload of ours: the page itself asks until the job is over.
    expect(page.get_by_text("Completed", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name="What the prompts share")).to_be_visible()
    expect(page.get_by_role("heading", name="Why lines failed")).to_be_visible()
    expect(page.get_by_role("heading", name="Tokens per step")).to_be_visible()
    look_at(page, "job")
    page.get_by_text("The largest shared prefixes as a table").click()
    expect(page.get_by_role("cell", name="invoice-").first).to_be_visible()
    look_at(page, "job-table")
    with page.expect_download() as download:
        page.get_by_role("link", name="Results").click()
    results = [json.loads(text) for text in Path(download.value.path()).read_text().splitlines()]
    assert len(results) == len(lines) - 2
    with page.expect_download() as download:
        page.get_by_role("link", name="Errors").click()
    errors = [json.loads(text) for text in Path(download.value.path()).read_text().splitlines()]
    assert {error["custom_id"] for error in errors} == {"too-hot", "odd"}
    submit(page, tmp_path, [line("a", "x"), line("a", "y"), line("b", "z", model="nobody-has-this")])
    expect(page.get_by_role("heading", name="The file cannot run as it is")).to_be_visible()
    look_at(page, "invalid")
    page.goto("/")
    expect(page.get_by_text("Completed", exact=True)).to_be_visible()
    look_at(page, "jobs")


def test_watch_pause_cancel_and_retry(page: Page, tmp_path: Path) -> None:
    submit(page, tmp_path, [line(f"q{n}", f"{n}?", max_tokens=250, ignore_eos=True) for n in range(1500)])
    bar = page.get_by_role("progressbar", name="Lines done")
    expect(bar).to_have_attribute("value", re.compile(r"[1-9]"))
    expect(page.get_by_role("region", name="Drawn tree")).to_be_visible()
    look_at(page, "running")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused", exact=True)).to_be_visible()
    look_at(page, "paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    # By keyboard alone: the button has the focus and takes Enter.
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Cancelled", exact=True)).to_be_visible()
    first = page.url
    page.get_by_role("button", name="Retry unfinished lines").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    assert page.url != first
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled", exact=True)).to_be_visible()


def test_log_in_with_a_key_and_out_again(
    serve: Callable[..., Service], open_page: Callable[[str], Page], tmp_path: Path
) -> None:
    keys: dict[str, str] = {}

    def make_keys(data_dir: Path) -> None:
        for owner in ("alice", "bob"):
            command = [sys.executable, "-m", "app.cli", "keys", "create", owner, "--data-dir", str(data_dir)]
            keys[owner] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    service = serve(before=make_keys)
    alice, bob = open_page(service.url), open_page(service.url)
    for page, key in ((alice, keys["alice"]), (bob, keys["bob"])):
        page.goto("/")
        expect(page).to_have_url(re.compile("/login$"))
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    submit(alice, tmp_path, [line("a", "one"), line("b", "two")])
    expect(alice.get_by_text("Completed", exact=True)).to_be_visible()
    bob.goto("/")
    expect(bob.get_by_role("heading", name="No jobs yet")).to_be_visible()
    alice.get_by_role("button", name="Log out alice").click()
    expect(alice).to_have_url(re.compile("/login$"))
    look_at(alice, "login")
    alice.goto("/")
    expect(alice).to_have_url(re.compile("/login$"))
