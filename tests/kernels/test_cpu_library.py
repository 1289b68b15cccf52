"""Building the CPU kernels. What they compute: test_cpu_layers.py, tests/engine/attention/."""

import pytest

from kernels import cpu_attention
from kernels.cpu_library import CompilerMissing


def test_it_is_built_once(tmp_path):
    cpu_attention.load(tmp_path)
    (library,) = tmp_path.iterdir()
    built = library.stat().st_mtime_ns
    cpu_attention.load(tmp_path)
    assert [entry.stat().st_mtime_ns for entry in tmp_path.iterdir()] == [built]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_it_says_so(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CompilerMissing, match=compiler):
        cpu_attention.load(tmp_path)
    assert list(tmp_path.iterdir()) == []
