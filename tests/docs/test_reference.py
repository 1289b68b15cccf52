"""The reference pages say what the code says: every command, flag, setting and metric."""

import re

import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from app.cli import app
from app.db.session import Database
from app.metrics import HttpFigures, registry
from app.settings import Settings
from app.storage import Storage
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


def test_every_setting_is_described() -> None:
    page = (GUIDE / "reference-settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`BATCHLLM_{name.upper()}`" in page
