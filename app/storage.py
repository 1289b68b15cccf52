"""Blobs by key, in a directory or (app/object_storage.py) in an object store.

A blob appears whole or not at all; once committed it survives a power cut.
"""

import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from app.settings import Settings, StartupError

_KEY = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = ".tmp"


class BlobNotFound(Exception):
    """No blob is stored under this key."""


class StorageAway(OSError):
    """The object store does not answer, or refuses; later it may be otherwise."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What a listing finds. `age_seconds`: since it was last written to."""

    name: str
    is_finished: bool
    age_seconds: float


class BlobWriter(ABC):
    """A blob being written. Leaving the `with` block without `commit` leaves nothing behind."""

    def __init__(self) -> None:
        self.key = uuid.uuid4().hex
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @abstractmethod
    def write(self, chunk: bytes) -> None:
        """Append `chunk`. OSError when the disk is full."""

    @abstractmethod
    def commit(self) -> str:
        """Make the blob durable and visible; returns its key. OSError, StorageAway among them."""

    @abstractmethod
    def abort(self) -> None:
        """Remove what was written, unless it is committed already. Takes no time."""


class Storage(ABC):
    """All blobs of a service. Every method may raise StorageAway."""

    @abstractmethod
    def create(self) -> BlobWriter:
        """A writer for a new blob under a fresh key."""

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """The blob, opened for reading at any offset. Raises BlobNotFound."""

    @abstractmethod
    def size(self, key: str) -> int:
        """The blob's length in bytes. Raises BlobNotFound."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the blob; nothing happens if there is none."""

    @abstractmethod
    def list_blobs(self) -> Iterator[StoredBlob]:
        """Everything that is stored, unfinished writes included where they can be seen, in no order."""

    @abstractmethod
    def remove(self, blob: StoredBlob) -> None:
        """Remove a blob or an unfinished write found by `list_blobs`."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Space that is left; None: nobody knows."""


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name. Raises StartupError if it cannot be written to."""
    if settings.storage_url is None:
        return DirectoryStorage(settings.data_dir)
    from app.object_storage import ObjectStorage  # here: without a URL its library need not be loaded

    return ObjectStorage(settings.storage_url, settings.data_dir)


def is_key(name: str) -> bool:
    """Whether a blob could have this name: never a path."""
    return _KEY.fullmatch(name) is not None


class FileWriter(BlobWriter):
    """Writes under a temporary name."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._temporary = directory / f"{self.key}{_UNFINISHED}"
        self._file = self._temporary.open("xb")

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.num_bytes += len(chunk)

    def commit(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.rename(self._directory / self.key)
        _fsync_directory(self._directory)
        return self.key

    def abort(self) -> None:
        try:
            self._file.close()  # writes what is buffered, which fails on a full disk
        finally:
            self._temporary.unlink(missing_ok=True)


class DirectoryStorage(Storage):
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
        return FileWriter(self.directory)

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except FileNotFoundError as error:
            raise BlobNotFound(key) from error

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError as error:
            raise BlobNotFound(key) from error

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def list_blobs(self) -> Iterator[StoredBlob]:
        with os.scandir(self.directory) as entries:
            for entry in entries:
                try:
                    modified = entry.stat().st_mtime
                except FileNotFoundError:
                    continue  # committed or removed since the directory was read
                key = entry.name.removesuffix(_UNFINISHED)
                if is_key(key):
                    yield StoredBlob(entry.name, key == entry.name, time.time() - modified)

    def remove(self, blob: StoredBlob) -> None:
        (self.directory / blob.name).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.directory).free

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise BlobNotFound(key)  # never a path
        return self.directory / key


def _fsync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
