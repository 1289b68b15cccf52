"""Ahead-of-time builds: what the compiler makes of the kernels for cards that are not here."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from benchmarks import kernel_report
from benchmarks.kernel_report import Build

DOCUMENT = Path(__file__).parents[2] / "docs/kernels.md"
WIDE_PRODUCT = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}


def _build(*arguments: str) -> list[Build]:
    """In a process of its own: this one has told Triton to interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernel_report", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [Build(**json.loads(line)) for line in done.stdout.splitlines()]


def _assert_sound(build: Build) -> None:
    """Of registers, scalars may spill (AMD's attention does): into lanes of a vector register, not memory."""
    assert build.spill_bytes == 0, build
    assert not build.spilled_vectors, build
    assert build.shared_bytes <= build.shared_limit, build
    assert build.programs >= 1, build
    assert build.wide_loads > 0, build
    assert build.narrow_loads == 0, build
    if build.kernel == "prefix_attention":
        assert WIDE_PRODUCT[build.card] in build.products, build


def _assert_documented(builds: list[Build]) -> None:
    """Skips where another version of the compiler is installed: it may need other registers."""
    text = DOCUMENT.read_text()
    documented = re.search(r"^Built with Triton (\S+)\.$", text, re.MULTILINE)
    assert documented, "docs/kernels.md does not say what its table was built with"
    if documented[1] != triton.__version__:
        pytest.skip(f"the table is of Triton {documented[1]}, {triton.__version__} is installed")
    for line in kernel_report.table(builds).splitlines():
        assert line in text.splitlines(), f"run make kernel-table: docs/kernels.md lacks {line}"


@pytest.fixture(scope="module", params=WIDE_PRODUCT)
def small_builds(request):
    """One of each kernel for a card."""
    builds = _build("--cards", request.param, "--dtypes", "bf16", "--head-dims", "64")
    assert [build.kernel for build in builds] == list(kernel_report.KERNELS)
    return builds


def test_builds_are_sound(small_builds):
    for build in small_builds:
        _assert_sound(build)


def test_builds_are_as_documented(small_builds):
    _assert_documented(small_builds)


@pytest.fixture(scope="module")
def all_builds():
    builds = _build()
    assert len(builds) == len(kernel_report.KERNELS) * len(WIDE_PRODUCT) * 2 * 2
    return builds


@pytest.mark.long
def test_all_builds_are_sound(all_builds):
    for build in all_builds:
        _assert_sound(build)


@pytest.mark.long
def test_all_builds_are_as_documented(all_builds):
    _assert_documented(all_builds)


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [["--head-dims", "80", "96", "256"], ["--bounded", "--head-dims", "64", "80", "96", "128", "256"]],
    ids=["other head sizes", "sliding window and soft cap"],
)
def test_attention_beyond_the_table_is_sound(arguments):
    builds = _build("--kernels", "prefix_attention", *arguments)
    assert {(build.card, build.dtype) for build in builds} == set(
        itertools.product(WIDE_PRODUCT, kernel_report.DTYPES)
    )
    for build in builds:
        _assert_sound(build)
