"""Takes the documentation's pictures of a real job: the terminal of `submit --watch`, the dashboard, a tree.

`make pictures` runs it; it needs tmux and Chromium, and about two minutes with the default model.
"""

import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI
from playwright.sync_api import sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from docs.examples.demo import running_service

PICTURES = Path(__file__).parent / "pictures"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
COLUMNS, ROWS = 80, 8
CHROMIUM = ["--no-sandbox", "--disable-gpu"]

RULES = (
    "You are a careful clerk of the archive in Fairhaven. Answer the question from the document alone. "
    "Give one short sentence, name no source, and do not repeat the question. Where the document does not "
    "say it, answer: not in the document."
)
THINGS = ("lighthouse", "orchard", "railway", "library", "bridge", "theatre", "harbour", "school")
QUESTIONS = (
    "Who built it?",
    "When was it built?",
    "What did it cost?",
    "Who owns it today?",
    "When is it open?",
    "What is it made of?",
    "Who worked there last?",
    "What was changed, and when?",
    "How many people visit it in a year?",
    "What is it used for today?",
)


def document(number: int, thing: str) -> str:
    year = 1850 + 7 * number
    return (
        f"The {thing} of Fairhaven was built in {year} by Ada Stone and her sons, who took three years and "
        f"spent {40 + number} thousand crowns. It is made of granite from the island of Gull. In {year + 62} "
        f"a fire destroyed the roof, which was replaced within a year. Tom Reed, who worked at the {thing} "
        f"until {year + 110}, was the last to live there. Since then the town has owned the {thing}; it is "
        f"open from May to September, and {1000 + 250 * number} people visit it in a year."
    )


def write_job(path: Path) -> Path:
    """Three levels: rules for all, documents, questions; documents of different popularity."""
    lines = []
    for number, thing in enumerate(THINGS):
        for n, question in enumerate(QUESTIONS[: 3 + number]):
            messages = [
                {"role": "system", "content": RULES},
                {"role": "user", "content": f"{document(number, thing)}\n\n{question}"},
            ]
            body = {"model": MODEL, "messages": messages, "max_tokens": 40, "temperature": 0}
            url = "/v1/chat/completions"
            lines.append({"custom_id": f"{thing}-{n}", "method": "POST", "url": url, "body": body})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@contextmanager
def terminal(folder: Path, environment: dict[str, str]) -> Iterator[list[str]]:
    """A tmux of 80 columns with a shell in `folder`; yields its command's first words."""
    tmux = ["tmux", "-L", f"batchllm-pictures-{os.getpid()}"]
    shell = [
        "env",
        *(f"{name}={value}" for name, value in environment.items()),
        "bash",
        "--norc",
        "--noprofile",
    ]
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    subprocess.run([*tmux, "new-session", "-d", *size, "-c", str(folder), *shell], check=True)
    try:
        yield tmux
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def screen(tmux: list[str]) -> str:
    """What stands there, with its colours."""
    return subprocess.run(
        [*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True
    ).stdout


def watch_in_terminal(tmux: list[str], client: OpenAI) -> list[str]:
    """Every screen that differed, four a second, from the command to the end of the batch."""
    while "$" not in screen(tmux):
        time.sleep(0.1)
    subprocess.run([*tmux, "send-keys", "batchllm submit questions.jsonl --watch", "Enter"], check=True)
    screens = [screen(tmux)]
    deadline = time.monotonic() + 300
    while "Fetch the results" not in screens[-1]:
        assert time.monotonic() < deadline, screens[-1]
        time.sleep(0.25)
        now = screen(tmux)
        if now != screens[-1]:
            screens.append(now)
    return screens


def save_svg(text: str, path: Path) -> None:
    """A screen as a picture. rich's own template would fetch a font from the network."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(text.rstrip()))
    template = re.sub(r"@font-face \{\{.*?\n    \}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    path.write_text(console.export_svg(title="batchllm", code_format=template, unique_id="watch"))


def photograph(url: str, batch_id: str) -> None:
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1120, "height": 900}, device_scale_factor=1.5)
        page.goto(f"{url}/jobs/{batch_id}")
        page.screenshot(path=PICTURES / "dashboard.png", full_page=True)
        page.locator("section", has=page.locator(".tree")).screenshot(path=PICTURES / "tree.png")
        browser.close()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, running_service(f"{work}/data") as base_url:
        folder, url = Path(work), base_url.removesuffix("/v1")
        write_job(folder / "questions.jsonl")
        client = OpenAI(base_url=base_url, api_key="unused")
        with terminal(folder, {"PS1": "$ ", "BATCHLLM_URL": url, "PATH": os.environ["PATH"]}) as tmux:
            screens = watch_in_terminal(tmux, client)
        running = [one for one in screens if "tokens/s" in one and "left" in one]
        save_svg(running[len(running) * 2 // 3], PICTURES / "watch.svg")
        photograph(url, next(iter(client.batches.list(limit=1))).id)
    longest = max(len(Text.from_ansi(line).plain) for one in screens for line in one.splitlines())
    print(f"{len(screens)} screens, {len(running)} of them of the running job; the longest line: {longest}.")


if __name__ == "__main__":
    main()
