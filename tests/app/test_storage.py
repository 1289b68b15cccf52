"""Blobs: whole or not at all."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings, StartupError
from app.storage import BlobNotFound, DirectoryStorage, Storage, StorageAway, open_storage
from tests.object_store import asking_for_credentials


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    url = request.getfixturevalue("s3_url") if request.param == "s3" else None
    return open_storage(Settings(data_dir=tmp_path / "data", storage_url=url))


@pytest.fixture
def directory(tmp_path: Path) -> Storage:
    return DirectoryStorage(tmp_path / "data")


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
    storage.delete(key)
    storage.delete(key)
    with pytest.raises(BlobNotFound):
        storage.size(key)
    with pytest.raises(BlobNotFound):
        storage.open(key)


def test_a_download_that_is_under_way_is_not_cut(directory: Storage) -> None:
    with directory.create() as writer:
        writer.write(b"abc")
        key = writer.commit()
    with directory.open(key) as blob:
        directory.delete(key)
        assert blob.read() == b"abc"


def test_a_large_blob_is_read_by_lines_and_offsets(storage: Storage) -> None:
    """Larger than a part of a put and than what is read at once."""
    line = bytes(range(32, 127)) * 100 + b"\n"
    num_lines = 1_800
    with storage.create() as writer:
        for _ in range(num_lines):
            writer.write(line)
        key = writer.commit()
    assert storage.size(key) == num_lines * len(line) > 17_000_000
    with storage.open(key) as blob:
        assert sum(1 for read in iter(lambda: blob.readline(len(line) + 2), b"") if read == line) == num_lines
        for number in (1_799, 3, 900):
            blob.seek(number * len(line) + 5)
            assert blob.read(len(line)) == line[5:] + (line[:5] if number < 1_799 else b"")
        blob.seek(0, 2)
        assert blob.read(1) == b""
        assert blob.tell() == num_lines * len(line)
    (found,) = storage.list_blobs()
    assert found.is_finished
    assert -5 < found.age_seconds < 60
    storage.remove(found)
    assert _names(storage) == set()


@pytest.mark.parametrize("key", ["", ".", "..", "../secret", "/etc/passwd", "A" * 32, "a" * 31])
def test_a_key_is_never_a_path(storage: Storage, key: str) -> None:
    for call in (storage.open, storage.size, storage.delete):
        with pytest.raises(BlobNotFound):
            call(key)


def test_a_killed_writer_leaves_an_unfinished_blob_only(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from app.storage import DirectoryStorage\n"
        "writer = DirectoryStorage(Path(sys.argv[1])).create(); writer.write(b'x' * 100_000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    storage = DirectoryStorage(tmp_path)
    (blob,) = storage.list_blobs()
    assert not blob.is_finished
    assert 0 <= blob.age_seconds < 60
    storage.remove(blob)
    assert _names(storage) == set()


def test_foreign_files_are_left_alone(directory: Storage, tmp_path: Path) -> None:
    (tmp_path / "data" / "blobs" / "README").write_text("mine")
    assert _names(directory) == set()


def test_two_prefixes_of_a_bucket_do_not_meet(s3_url: str, tmp_path: Path) -> None:
    first, second = (
        open_storage(Settings(data_dir=tmp_path, storage_url=f"{s3_url}{end}")) for end in ("", "-b")
    )
    with first.create() as writer:
        key = writer.commit()
    assert _names(second) == set()
    with pytest.raises(BlobNotFound):
        second.open(key)


def test_an_object_store_that_cannot_be_used_is_one_sentence(
    s3_url: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(url: str) -> str:
        with pytest.raises(StartupError, match="cannot be used") as caught:
            open_storage(Settings(data_dir=tmp_path, storage_url=url))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no such bucket" in refusal("s3://missing/files")
    assert "s3://bucket/prefix" in refusal("gs://blobs/files")
    with asking_for_credentials(s3_endpoint):
        assert "access is denied" in refusal(s3_url)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert "AWS_ENDPOINT_URL" in refusal(s3_url)


def test_an_object_store_that_goes_away_is_an_outage(s3_url: str, s3_endpoint: str, tmp_path: Path) -> None:
    storage = open_storage(Settings(data_dir=tmp_path, storage_url=s3_url))
    with storage.create() as writer:
        writer.write(b"abc")
        key = writer.commit()
    with asking_for_credentials(s3_endpoint):
        for call in (
            lambda: storage.open(key),
            lambda: storage.delete(key),
            lambda: list(storage.list_blobs()),
        ):
            with pytest.raises(StorageAway):
                call()
        with storage.create() as writer, pytest.raises(StorageAway):
            writer.commit()
    with storage.open(key) as blob:
        assert blob.read() == b"abc"


def test_a_directory_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be written to") as caught:
        DirectoryStorage(tmp_path / "file")
    assert "\n" not in str(caught.value)
