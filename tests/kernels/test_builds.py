"""Ahead-of-time builds: what the compiler makes of the kernels for cards that are not here."""

import json
import os
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
    assert build.spill_bytes == 0, build
    assert build.shared_bytes <= build.shared_limit, build
    assert build.programs >= 1, build
    assert build.wide_loads > 0, build
    assert build.narrow_loads == 0, build
    if build.kernel == "prefix_attention":
        assert WIDE_PRODUCT[build.card] in build.products, build


def _assert_documented(builds: list[Build]) -> None:
    """Another version of the compiler may need other registers; it must be sound all the same."""
    text = DOCUMENT.read_text()
    if f"Built with Triton {triton.__version__}." in text:
        for line in kernel_report.table(builds).splitlines():
            assert line in text.splitlines(), f"run make kernel-table: docs/kernels.md lacks {line}"


@pytest.mark.parametrize("card", WIDE_PRODUCT)
def test_builds_are_sound_and_as_documented(card):
    builds = _build("--cards", card, "--dtypes", "bf16", "--head-dims", "64")
    assert len(builds) == len(kernel_report.KERNELS)
    for build in builds:
        _assert_sound(build)
    _assert_documented(builds)


@pytest.mark.long
def test_all_builds_are_sound_and_as_documented():
    builds = _build()
    assert len(builds) == len(kernel_report.KERNELS) * len(WIDE_PRODUCT) * 2 * 2
    for build in builds:
        _assert_sound(build)
    _assert_documented(builds)


@pytest.mark.long
@pytest.mark.parametrize("head_dim", [80, 96, 256])
def test_other_head_sizes_are_sound(head_dim):
    for build in _build("--kernels", "prefix_attention", "--dtypes", "bf16", "--head-dims", str(head_dim)):
        _assert_sound(build)
