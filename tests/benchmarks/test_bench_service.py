"""The bounds of memory that hold for the largest file that is taken. Rates are in benchmarks/LOG.md."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def bench(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_service", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_small_file_goes_through() -> None:
    """Every line comes back once, or the benchmark itself fails."""
    figures = bench("--lines", "300", "--line-bytes", "400")
    assert figures["lines"] == 300
    assert set(figures["seconds"]) == {
        "upload",
        "validation",
        "loading",
        "recording",
        "finalizing",
        "download",
    }


@pytest.mark.long
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_memory_of_fifty_thousand_lines(database: str, request: pytest.FixtureRequest) -> None:
    options = []
    if database == "postgres":
        options = ["--database-url", str(request.getfixturevalue("empty_postgres_url"))]
    figures = bench(*options)
    assert (figures["lines"], figures["input_mb"]) == (50_000, 200.0)
    assert figures["peak_mib"]["api"] < 200
    assert figures["peak_mib"]["keeper"] < 200
    assert figures["peak_mib"]["worker"] < 1_000
