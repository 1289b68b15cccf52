"""The reference pages say what the code says: every command, flag, setting and metric."""

import ast
import re

import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from app.cli import app
from app.db.session import Database
from app.metrics import HttpFigures, registry
from app.settings import Settings
from app.storage import Storage
from docs.api_reference import openapi
from docs.reference import GUIDE, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_as_the_code_makes_them(name: str) -> None:
    assert (GUIDE / name).read_text() == PAGES[name](), "run: make reference"


def test_every_flag_that_help_shows_is_described() -> None:
    sections = re.split(r"^## batchllm ", (GUIDE / "reference-cli.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) > 15
    for section in sections:
        command = section.partition("\n")[0].split()
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert shown.exit_code == 0, command
        flags = set(re.findall(r"--[a-z][a-z-]+", shown.output)) - {"--help"}
        described = set(re.findall(r"--[a-z][a-z-]+", section.partition("|---|")[2]))
        assert flags <= described, command


def test_every_metric_that_is_served_is_described(database: Database, storage: Storage) -> None:
    page = (GUIDE / "reference-metrics.md").read_text()
    text = generate_latest(registry(database, storage, HttpFigures())).decode()
    served = set(re.findall(r"^# TYPE (batchllm_\w+)", text, flags=re.MULTILINE))
    assert len(served) > 20
    assert served == set(re.findall(r"`(batchllm_\w+)`", page))


def test_every_operation_is_described() -> None:
    described = re.findall(r"^## ([A-Z]+) (\S+)$", (GUIDE / "reference-api.md").read_text(), re.MULTILINE)
    served = {(m.upper(), path) for path, methods in openapi()["paths"].items() for m in methods}
    assert len(served) >= 30
    assert set(described) == served
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path} has no docstring"


def test_messages_of_troubleshooting_are_the_code_s() -> None:
    root = GUIDE.parents[1]
    said = [
        node.value
        for source in (*root.glob("app/**/*.py"), *root.glob("engine/**/*.py"))
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    cells = re.findall(r"^\| `(.+?)` \|", (GUIDE / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(cells) > 30
    for cell in cells:
        for fragment in filter(None, re.split(r"…|`, `", cell)):
            assert any(fragment in text for text in said), f"nothing says: {fragment}"


def test_every_picture_of_a_page_is_there() -> None:
    """The site's strict build looks at links and anchors, not at pictures."""
    num_pictures = 0
    for page in [GUIDE.parents[1] / "README.md", *GUIDE.parent.rglob("*.md")]:
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).is_file(), f"{page}: {target}"
            num_pictures += 1
    assert num_pictures


def test_every_setting_is_described() -> None:
    page = (GUIDE / "reference-settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`BATCHLLM_{name.upper()}`" in page
