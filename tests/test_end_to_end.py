"""The openai SDK against `batchllm serve`: three real processes, a real (tiny) model, both databases."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import Batch

from tests.service import Service

TERMINAL = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture
def service(tmp_path, database_url, tiny_llama_dir) -> Iterator[Service]:
    running = Service(
        tmp_path / "data",
        {
            "BATCHLLM_DATABASE_URL": database_url,
            "BATCHLLM_MODEL": str(tiny_llama_dir),
            "BATCHLLM_MODEL_NAME": "tiny",
            "BATCHLLM_KV_MEMORY": "4MiB",
            "BATCHLLM_THREADS": "1",
        },
    )
    running.start()
    yield running
    assert running.stop() == 0


def _line(custom_id: str, **body) -> dict:
    messages = [
        {
            "role": "system",
            "content": "You answer in one word, whatever is asked, and never explain yourself.",
        },
        {"role": "user", "content": f"Say {custom_id}."},
    ]
    body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _submit(
    service: Service, lines: list[dict], folder: Path, endpoint: str = "/v1/chat/completions"
) -> Batch:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = service.client.files.create(file=path, purpose="batch")
    assert service.client.files.content(file.id).content == path.read_bytes()
    return service.client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"of": "a test"}
    )


def _wait(service: Service, batch: Batch, seconds: float = 60) -> Batch:
    deadline = time.monotonic() + seconds
    while batch.status not in TERMINAL:
        assert time.monotonic() < deadline, f"still {batch.status} after {seconds} s"
        time.sleep(0.1)
        batch = service.client.batches.retrieve(batch.id)
    return batch


def _results(service: Service, file_id: str | None) -> dict[str, dict]:
    if file_id is None:
        return {}
    lines = map(json.loads, service.client.files.content(file_id).text.splitlines())
    return {line["custom_id"]: line for line in lines}


def test_a_batch_from_upload_to_download(service, tmp_path):
    lines = [_line(f"line-{number}") for number in range(40)]
    lines[7]["body"]["temperature"] = 9
    lines[9]["body"]["web_search_options"] = {}
    batch = _wait(service, _submit(service, lines, tmp_path))
    assert batch.status == "completed"
    assert batch.model == "tiny"
    assert batch.metadata == {"of": "a test"}
    outputs, errors = _results(service, batch.output_file_id), _results(service, batch.error_file_id)
    assert set(outputs) | set(errors) == {line["custom_id"] for line in lines}
    assert set(errors) == {"line-7", "line-9"}
    assert errors["line-7"]["response"]["status_code"] == 400
    assert errors["line-9"]["response"]["body"]["error"]["code"] == "unsupported_parameter"
    usages = [line["response"]["body"]["usage"] for line in outputs.values()]
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert batch.usage.input_tokens_details.cached_tokens > batch.usage.input_tokens / 2
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(times)


def test_completions_take_text_and_token_ids(service, tmp_path):
    bodies = [{"prompt": "The quick brown"}, {"prompt": [5, 6, 7, 8]}]
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "max_tokens": 5, "temperature": 0, "ignore_eos": True} | body,
        }
        for number, body in enumerate(bodies)
    ]
    batch = _wait(service, _submit(service, lines, tmp_path, "/v1/completions"))
    outputs = _results(service, batch.output_file_id)
    usage = outputs["1"]["response"]["body"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 5)
    assert outputs["0"]["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_invalid_lines_fail_the_batch_and_nothing_runs(service, tmp_path):
    lines = [_line("a"), _line("a"), _line("c", model="unknown"), _line("d", stream=True)]
    batch = _wait(service, _submit(service, lines, tmp_path))
    assert batch.status == "failed"
    found = [(error.line, error.code) for error in batch.errors.data]
    assert found == [(2, "duplicate_custom_id"), (3, "model_not_found"), (4, "streaming_unsupported")]
    assert batch.output_file_id is None
    assert batch.request_counts.total == 0


def test_a_cancelled_batch_keeps_what_was_finished(service, tmp_path):
    lines = [_line(f"line-{n}", max_tokens=300, ignore_eos=True) for n in range(200)]
    batch = _submit(service, lines, tmp_path)
    while batch.request_counts.completed < 10:
        time.sleep(0.1)
        batch = service.client.batches.retrieve(batch.id)
        assert batch.status not in TERMINAL
    service.client.batches.cancel(batch.id)
    batch = _wait(service, batch, seconds=15)
    assert batch.status == "cancelled"
    outputs, errors = _results(service, batch.output_file_id), _results(service, batch.error_file_id)
    assert len(outputs) == batch.request_counts.completed >= 10
    assert batch.request_counts.failed == 0
    assert len(outputs) + len(errors) == 200
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    with pytest.raises(openai.NotFoundError):
        service.client.batches.cancel("batch_none")
