"""A batch through real processes whose files are in an object store."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.live import Live, line, live_on, results, submit, wait_for


@pytest.fixture
def live_on_s3(
    tmp_path: Path, s3_url: str, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Live]:
    monkeypatch.setenv("BATCHLLM_STORAGE_URL", s3_url)
    yield from live_on(f"sqlite:///{tmp_path / 'batchllm.db'}", tmp_path / "data", tiny_llama_dir)


def test_a_batch_whose_files_are_in_an_object_store(live_on_s3: Live, tmp_path: Path) -> None:
    client = live_on_s3.client()
    batch = wait_for(client, submit(client, [line(f"line-{number}") for number in range(5)]))
    assert batch.status == "completed"
    assert batch.output_file_id is not None
    assert len(results(client, batch.output_file_id)) == 5
    ranged = client.files.with_raw_response.content(
        batch.output_file_id, extra_headers={"Range": "bytes=0-9"}
    )
    assert (ranged.status_code, len(ranged.content)) == (206, 10)
    client.files.delete(batch.output_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)
    assert not list((tmp_path / "data").glob("blobs/*"))
