"""Blobs: whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import StartupError
from app.storage import BlobNotFound, Storage


def _names(storage: Storage) -> set[tuple[str, bool]]:
    return {(blob.name, blob.is_finished) for blob in storage.list_blobs()}


def test_a_committed_blob_reads_back(storage: Storage) -> None:
    with storage.create() as writer:
        writer.write(b"abc")
        writer.write(b"")
        writer.write(b"\xff\n")
        assert writer.num_bytes == 5
        with pytest.raises(BlobNotFound):
            storage.open(writer.key)
        key = writer.commit()
    assert key == writer.key
    with storage.open(key) as blob:
        assert blob.read() == b"abc\xff\n"
        blob.seek(1)
        assert blob.read(2) == b"bc"
    assert storage.size(key) == 5
    assert _names(storage) == {(key, True)}


def test_an_abandoned_blob_leaves_nothing(storage: Storage) -> None:
    def fail_halfway() -> None:
        with storage.create() as writer:
            writer.write(b"abc")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    with storage.create() as writer:
        writer.write(b"abc")
    assert _names(storage) == set()


def test_deleting(storage: Storage) -> None:
    with storage.create() as writer:
        key = writer.commit()
    with storage.open(key) as blob:
        storage.delete(key)
        assert blob.read() == b""  # a download that is under way is not cut
    storage.delete(key)
    with pytest.raises(BlobNotFound):
        storage.size(key)


@pytest.mark.parametrize("key", ["", ".", "..", "../secret", "/etc/passwd", "A" * 32, "a" * 31])
def test_a_key_is_never_a_path(storage: Storage, key: str) -> None:
    for call in (storage.open, storage.size, storage.delete):
        with pytest.raises(BlobNotFound):
            call(key)


def test_a_killed_writer_leaves_an_unfinished_blob_only(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from app.storage import Storage\n"
        "writer = Storage(Path(sys.argv[1])).create(); writer.write(b'x' * 100_000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    storage = Storage(tmp_path)
    (blob,) = storage.list_blobs()
    assert not blob.is_finished
    assert 0 <= blob.age_seconds < 60
    storage.remove(blob)
    assert _names(storage) == set()


def test_foreign_files_are_left_alone(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "data" / "blobs" / "README").write_text("mine")
    assert _names(storage) == set()


def test_a_directory_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be written to") as caught:
        Storage(tmp_path / "file")
    assert "\n" not in str(caught.value)
