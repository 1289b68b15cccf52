"""A batch file, or a part of one, while it comes in: its fields checked, its bytes counted and stored."""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

import orjson
from starlette.requests import Request

from app.api.bodies import MAX_EXPIRY_SECONDS, MIN_EXPIRY_SECONDS, PURPOSES
from app.api.errors import (
    ApiError,
    invalid_value,
    missing_parameter,
    too_large,
    unknown_parameter,
    unsupported_value,
)

TEXT_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
FILE_FIELD = "file"
PART_FIELD = "data"

# Room for the form around a file: beyond it the declared length alone shows that the file is too large.
FORM_OVERHEAD_BYTES = 64 << 10

MAX_FILENAME_CHARS = 255

_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


class ByteSink(Protocol):
    def write(self, chunk: bytes) -> None: ...


class HashedSink:
    """Passes bytes on and takes their sha256 meanwhile."""

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._sink.write(chunk)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class IncomingFields:
    """What came with the bytes; `expires_seconds` after the file's creation, None for the default."""

    filename: str
    purpose: str
    num_bytes: int
    expires_seconds: int | None


class IncomingPart:
    """Receives the form around one part of an upload; see `FormReceiver`."""

    def __init__(self, sink: ByteSink, *, max_bytes: int) -> None:
        self._sink = sink
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def text(self, name: str, value: str) -> None:
        raise unknown_parameter(name)

    def start_file(self, filename: str) -> None:
        """Its name is of no use: the upload has one."""

    def write(self, chunk: bytes) -> None:
        self._num_bytes += len(chunk)
        if self._num_bytes > self._max_bytes:
            raise _too_large(PART_FIELD, self._max_bytes)
        self._sink.write(chunk)


class IncomingFile:
    """Receives the parts of an upload form; see `FormReceiver`. Refuses as early as it can."""

    def __init__(self, sink: ByteSink, *, max_bytes: int, max_line_bytes: int) -> None:
        self._sink = sink
        self._max_bytes = max_bytes
        self._first_line = FirstLine(max_line_bytes)
        self._texts: dict[str, str] = {}
        self._filename = ""
        self._num_bytes = 0

    def text(self, name: str, value: str) -> None:
        if name == "purpose" and value not in PURPOSES:
            raise unsupported_value("purpose", value, PURPOSES)
        if name == "expires_after[anchor]" and value != "created_at":
            raise unsupported_value(name, value, ("created_at",))
        if name == "expires_after[seconds]":
            check_expiry_seconds(name, int(value) if re.fullmatch(r"[0-9]{1,12}", value) else None)
        self._texts[name] = value

    def start_file(self, filename: str) -> None:
        self._filename = check_filename(filename, FILE_FIELD)

    def write(self, chunk: bytes) -> None:
        self._num_bytes += len(chunk)
        if self._num_bytes > self._max_bytes:
            raise _too_large(FILE_FIELD, self._max_bytes)
        self._first_line.push(chunk)
        self._sink.write(chunk)

    def finish(self) -> IncomingFields:
        """Call after the whole form; raises `ApiError` for what only its absence shows."""
        if "purpose" not in self._texts:
            raise missing_parameter("purpose")
        for name in ("expires_after[anchor]", "expires_after[seconds]"):
            if name not in self._texts and self._texts.keys() != {"purpose"}:
                raise missing_parameter(name)
        self._first_line.finish()
        seconds = self._texts.get("expires_after[seconds]")
        return IncomingFields(
            filename=self._filename,
            purpose=self._texts["purpose"],
            num_bytes=self._num_bytes,
            expires_seconds=None if seconds is None else int(seconds),
        )


def check_expiry_seconds(param: str, seconds: int | None) -> None:
    """Raises `ApiError` unless the time to live is one that the API allows."""
    if seconds is None or not MIN_EXPIRY_SECONDS <= seconds <= MAX_EXPIRY_SECONDS:
        allowed = f"an integer between {MIN_EXPIRY_SECONDS} and {MAX_EXPIRY_SECONDS}"
        raise invalid_value(param, f"Invalid value for '{param}': expected {allowed}.")


def check_declared_bytes(request: Request, field: str, max_bytes: int) -> int:
    """Fewest bytes that the file in a form of this length has; 0 where the request does not say its length.

    Raises `ApiError` where that alone shows that the file is too large.
    """
    declared = request.headers.get("content-length", "")
    num_bytes = int(declared) - FORM_OVERHEAD_BYTES if declared.isdecimal() else 0
    if num_bytes > max_bytes:
        raise _too_large(field, max_bytes)
    return max(num_bytes, 0)


def _too_large(field: str, max_bytes: int) -> ApiError:
    return too_large(f"The {field} is larger than the limit of {max_bytes} bytes.", param=field)


class FirstLine:
    """Looks at the first line that is not blank: whoever uploads a CSV should hear it at once.

    A line longer than `max_bytes` is left to the validation of the batch, which reports it with its number.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._head = bytearray()
        self._settled = False

    def push(self, chunk: bytes) -> None:
        if self._settled:
            return
        self._head += chunk
        if self._head.startswith(_BOM):
            del self._head[: len(_BOM)]
        if not _BOM.startswith(self._head):  # else the mark may still be arriving
            self._head = self._head.lstrip(_BLANK)
        line, newline, _ = self._head.partition(b"\n")
        if newline:
            self._settle(line)
        elif len(line) > self._max_bytes:
            self._settled = True

    def finish(self) -> None:
        if not self._settled:
            self._settle(self._head)

    def _settle(self, line: bytearray) -> None:
        self._settled = True
        self._head = bytearray()
        try:
            is_object = len(line) > self._max_bytes or isinstance(orjson.loads(line), dict)
        except orjson.JSONDecodeError:
            is_object = False
        if not is_object:
            raise _not_jsonl()


def check_filename(filename: str, param: str) -> str:
    """The name without directories; raises `ApiError` unless it is one of a batch file.

    The SDK calls raw bytes `upload`.
    """
    name = re.split(r"[/\\]", filename)[-1]
    if name != "upload" and not name.lower().endswith(".jsonl"):
        raise _not_jsonl()
    if len(name) > MAX_FILENAME_CHARS or not name.isprintable():
        message = f"A file name may have at most {MAX_FILENAME_CHARS} characters, all of them printable."
        raise invalid_value(param, message)
    return name


def _not_jsonl() -> ApiError:
    return ApiError(400, "Invalid file format for Batch API. Must be .jsonl")
