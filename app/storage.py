"""Blobs by key in a directory. A blob appears whole or not at all; once committed it survives a power cut."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from app.settings import StartupError

_KEY = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = ".tmp"


class BlobNotFound(Exception):
    """No blob is stored under this key."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A file in the storage directory. `age_seconds`: since it was last written to."""

    name: str
    is_finished: bool
    age_seconds: float


class BlobWriter:
    """A blob being written under a temporary name. Leaving the `with` block without `commit` removes it."""

    def __init__(self, directory: Path) -> None:
        self.key = uuid.uuid4().hex
        self.num_bytes = 0
        self._directory = directory
        self._temporary = directory / f"{self.key}{_UNFINISHED}"
        self._file = self._temporary.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, chunk: bytes) -> None:
        """Append `chunk`. OSError when the disk is full."""
        self._file.write(chunk)
        self.num_bytes += len(chunk)

    def commit(self) -> str:
        """Make the blob durable and visible; returns its key."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.rename(self._directory / self.key)
        _fsync_directory(self._directory)
        return self.key

    def abort(self) -> None:
        """Remove what was written, unless it is committed already."""
        try:
            self._file.close()  # writes what is buffered, which fails on a full disk
        finally:
            self._temporary.unlink(missing_ok=True)


class Storage:
    """The blobs under `data_dir`/blobs."""

    def __init__(self, data_dir: Path) -> None:
        """Create the directory if need be. Raises StartupError if it cannot be written to."""
        self.directory = data_dir.expanduser().resolve() / "blobs"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self.create() as probe:
                probe.write(b"")
        except OSError as error:
            raise StartupError(
                f"The data directory {data_dir} cannot be written to ({error.strerror}); "
                "make it writable or choose another with BATCHLLM_DATA_DIR."
            ) from error

    def create(self) -> BlobWriter:
        """A writer for a new blob under a fresh key."""
        return BlobWriter(self.directory)

    def open(self, key: str) -> BinaryIO:
        """The blob, opened for reading. Raises BlobNotFound."""
        try:
            return self._path(key).open("rb")
        except FileNotFoundError as error:
            raise BlobNotFound(key) from error

    def size(self, key: str) -> int:
        """The blob's length in bytes. Raises BlobNotFound."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError as error:
            raise BlobNotFound(key) from error

    def delete(self, key: str) -> None:
        """Remove the blob; nothing happens if there is none."""
        self._path(key).unlink(missing_ok=True)

    def list_blobs(self) -> Iterator[StoredBlob]:
        """Everything in the directory, unfinished writes included, in no order."""
        with os.scandir(self.directory) as entries:
            for entry in entries:
                try:
                    modified = entry.stat().st_mtime
                except FileNotFoundError:
                    continue  # committed or removed since the directory was read
                key = entry.name.removesuffix(_UNFINISHED)
                if _KEY.fullmatch(key):
                    yield StoredBlob(entry.name, key == entry.name, time.time() - modified)

    def remove(self, blob: StoredBlob) -> None:
        """Remove a blob or an unfinished write found by `list_blobs`."""
        (self.directory / blob.name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise BlobNotFound(key)  # never a path
        return self.directory / key


def _fsync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
