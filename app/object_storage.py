"""Blobs in an S3-compatible object store, by the library `obstore`; AWS_* variables say where and who asks.

A blob is gathered in an unnamed local file and put in one go: what breaks off, or is refused, costs no
request, and a put is atomic however many parts it has. Reading asks for ranges.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, cast

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from app.settings import StartupError
from app.storage import BlobNotFound, BlobWriter, Storage, StorageAway, StoredBlob, is_key

_READ_BYTES = 4 << 20  # of a range: a request takes some 20 ms, whatever it fetches
_PART_BYTES = 8 << 20  # of a put in parts; parts at once times this is what it holds in memory
_PARTS_AT_ONCE = 4
_MOST_REASON_CHARS = 200


class ObjectStorage(Storage):
    """The objects below `s3://bucket/prefix`."""

    def __init__(self, url: str, data_dir: Path) -> None:
        """`data_dir`: where blobs are gathered. Raises StartupError if an object cannot be written."""
        self._spool = data_dir.expanduser().resolve()
        try:
            self._spool.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._spool).close()
            self._probe(url)
            self._store = _connect(url)
        except (BaseError, ValueError, FileNotFoundError) as error:
            raise StartupError(
                f"The storage {url} cannot be used ({_why_not(error)}); check BATCHLLM_STORAGE_URL, "
                "AWS_ENDPOINT_URL and the credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from error
        except OSError as error:
            raise StartupError(
                f"The data directory {data_dir} cannot be written to ({error.strerror}); "
                "make it writable or choose another with BATCHLLM_DATA_DIR."
            ) from error

    def _probe(self, url: str) -> None:
        store = _connect(url, max_retries=1)  # who gave a wrong address should not wait for minutes
        with _ObjectWriter(store, self._spool) as probe:
            obstore.put(store, probe.key, b"")
            obstore.delete(store, probe.key)

    def create(self) -> BlobWriter:
        return _ObjectWriter(self._store, self._spool)

    def open(self, key: str) -> BinaryIO:
        raw = _ObjectReader(self._store, key, self.size(key))
        return cast(BinaryIO, io.BufferedReader(raw, _READ_BYTES))

    def size(self, key: str) -> int:
        if not is_key(key):
            raise BlobNotFound(key)  # never a path
        with _translated(key):
            return int(obstore.head(self._store, key)["size"])

    def delete(self, key: str) -> None:
        if not is_key(key):
            raise BlobNotFound(key)
        with suppress(BlobNotFound), _translated(key):
            obstore.delete(self._store, key)

    def list_blobs(self) -> Iterator[StoredBlob]:
        """Puts that were broken off are not seen: a rule of the bucket's life cycle has to abort them."""
        with _translated(""):
            for chunk in obstore.list(self._store):
                for found in chunk:
                    age_seconds = time.time() - found["last_modified"].timestamp()
                    if is_key(found["path"]):
                        yield StoredBlob(found["path"], True, age_seconds)

    def remove(self, blob: StoredBlob) -> None:
        self.delete(blob.name)

    def free_bytes(self) -> int | None:
        return None


class _ObjectWriter(BlobWriter):
    def __init__(self, store: S3Store, spool: Path) -> None:
        super().__init__()
        self._store = store
        self._file = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 (closed by commit or abort)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.num_bytes += len(chunk)

    def commit(self) -> str:
        self._file.seek(0)
        with _translated(self.key):
            obstore.put(
                self._store,
                self.key,
                self._file,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
        self._file.close()
        return self.key

    def abort(self) -> None:
        with suppress(OSError):  # a full disk takes what is buffered no more than the rest
            self._file.close()


class _ObjectReader(io.RawIOBase):
    """One object as a file; `num_bytes` is its length, which never changes."""

    def __init__(self, store: S3Store, key: str, num_bytes: int) -> None:
        self._store = store
        self._key = key
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        num_bytes = max(0, min(len(buffer), self._num_bytes - self._position))
        if num_bytes:
            with _translated(self._key):
                content = obstore.get_range(self._store, self._key, start=self._position, length=num_bytes)
            buffer[:num_bytes] = memoryview(content)
            self._position += num_bytes
        return num_bytes


def _connect(url: str, max_retries: int = 10) -> S3Store:
    """Raises ValueError and BaseError."""
    if not url.startswith("s3://"):
        raise ValueError("it has to look like s3://bucket/prefix")
    is_plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return S3Store.from_url(
        url,
        client_options={"allow_http": is_plain, "connect_timeout": timedelta(seconds=10)},
        retry_config={"max_retries": max_retries},
    )


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobNotFound(key) from error
    except BaseError as error:
        raise StorageAway(_why_not(error)) from error


def _why_not(error: Exception) -> str:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "access is denied"
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_MOST_REASON_CHARS]
