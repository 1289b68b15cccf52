"""`batchllm plan` on a tiny model: figures, failing lines, and what it says about them."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from app.dry_run import DryRun, dry_run, summary
from app.settings import Settings
from tests.models import save_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def _plan(path: Path, lines: list[dict[str, Any]], model_dir: Path, **settings: Any) -> DryRun:
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    configured = Settings(model=str(model_dir), model_name="m", **settings)
    return dry_run(path, configured, "a100", "qwen2.5-7b")


def _line(custom_id: str, prompt: Any, **body: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": prompt, "max_tokens": 4} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def test_figures_longest_prompts_and_plain_json(tmp_path: Path, model_dir: Path) -> None:
    shared = list(range(3, 103))
    lines = [_line(f"r{i}", [*shared, *range(3, 4 + i)], ignore_eos=True) for i in range(8)]
    plan = _plan(tmp_path / "in.jsonl", lines, model_dir)
    assert plan.estimate.requests == 8
    assert plan.estimate.output_tokens == 32
    assert plan.estimate.saving > 0.8
    assert [prompt.custom_id for prompt in plan.longest_prompts] == ["r7", "r6", "r5", "r4", "r3"]
    figures = orjson.loads(plan.as_json())
    assert figures["model"] == "qwen2.5-7b"
    assert figures["hardware"] == "a100"
    assert {"prompt_tokens", "unique_tokens", "lru_saving", "bound_saving", "peak_kv_bytes"} <= figures.keys()
    assert "8 requests" in summary(plan)
    assert "fail" not in summary(plan)


def test_lines_that_would_fail_are_told_and_the_rest_is_priced(tmp_path: Path, model_dir: Path) -> None:
    lines = [
        _line("good", "hello"),
        _line("bad value", "hello", temperature=9),
        _line("too long", [3] * 600),
        _line("impossible", "hello", guided_json={"type": "integer", "minimum": 2, "maximum": 1}),
        _line("not our model", "hello", model="other"),
    ]
    plan = _plan(tmp_path / "in.jsonl", lines, model_dir)
    assert plan.estimate.requests == 1
    assert [line.line for line in plan.failing] == [2, 3, 4]
    assert "minimum" in plan.failing[2].message
    assert [line.line for line in plan.invalid] == [5]
    assert "The file would be refused: 1 invalid" in summary(plan)


def test_people_are_told_of_some_of_many_bad_lines(tmp_path: Path, model_dir: Path) -> None:
    lines = [_line(f"r{n}", "hello", temperature=9) for n in range(30)]
    plan = _plan(tmp_path / "in.jsonl", lines, model_dir)
    assert len(plan.failing) == len(orjson.loads(plan.as_json())["failing"]) == 30
    assert summary(plan).count("\nline ") == 20
    assert "... and 10 more such lines" in summary(plan)
    assert "30 lines would fail" in summary(plan)


def test_each_choice_is_priced_and_each_line_told_once(tmp_path: Path, model_dir: Path) -> None:
    lines = [_line("many", [[3] * 40, [4] * 50], n=2), _line("one", [3] * 20)]
    plan = _plan(tmp_path / "in.jsonl", lines, model_dir)
    assert plan.estimate.requests == 5
    told = [(prompt.custom_id, prompt.prompt_tokens) for prompt in plan.longest_prompts]
    assert told == [("many", 50), ("one", 20)]
    small = _plan(tmp_path / "in.jsonl", lines, model_dir, kv_memory=16 * 3 * 57_344)
    assert [line.custom_id for line in small.failing] == ["many"]


def test_what_kv_memory_cannot_hold_fails_too(tmp_path: Path, model_dir: Path) -> None:
    kv_memory = 16 * 20 * 57_344  # 20 pages of this model
    lines = [_line("fits", [3] * 40), _line("does not", [3] * 310)]
    plan = _plan(tmp_path / "in.jsonl", lines, model_dir, kv_memory=kv_memory)
    assert plan.estimate.requests == 1
    assert [line.custom_id for line in plan.failing] == ["does not"]
    assert "1 lines would fail" in summary(plan)


def test_an_empty_file_is_told_as_a_whole(tmp_path: Path, model_dir: Path) -> None:
    told = summary(_plan(tmp_path / "in.jsonl", [], model_dir))
    assert "\nthe file: empty_file: " in told


def test_tokens_in_a_step_are_those_given_whatever_the_hardware(tmp_path: Path, model_dir: Path) -> None:
    lines = [_line(f"r{i}", [i + 3] * 100, max_tokens=1) for i in range(4)]
    steps = [
        _plan(tmp_path / "in.jsonl", lines, model_dir, **given).estimate.steps
        for given in ({}, {"max_batch_tokens": 50})
    ]
    assert steps == [1, 8]
