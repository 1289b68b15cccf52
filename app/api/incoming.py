"""An uploaded batch file while it comes in: its fields checked, its bytes counted and stored."""

import re
from dataclasses import dataclass
from typing import Protocol

import orjson

from app.api.errors import ApiError, invalid_value, missing_parameter, too_large, unsupported_value

PURPOSES = ("batch",)
TEXT_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
FILE_FIELD = "file"

MIN_EXPIRY_SECONDS = 3_600
MAX_EXPIRY_SECONDS = 2_592_000
MAX_FILENAME_CHARS = 255

_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


class ByteSink(Protocol):
    def write(self, chunk: bytes) -> None: ...


@dataclass(frozen=True)
class IncomingFields:
    """What came with the bytes; `expires_seconds` after the file's creation, None for the default."""

    filename: str
    purpose: str
    num_bytes: int
    expires_seconds: int | None


class IncomingFile:
    """Receives the parts of an upload form; see `FormReceiver`. Refuses as early as it can."""

    def __init__(self, sink: ByteSink, *, max_bytes: int, max_line_bytes: int) -> None:
        self._sink = sink
        self._max_bytes = max_bytes
        self._first_line = _FirstLine(max_line_bytes)
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
        self._filename = _check_filename(filename)

    def write(self, chunk: bytes) -> None:
        self._num_bytes += len(chunk)
        if self._num_bytes > self._max_bytes:
            raise file_too_large(self._max_bytes)
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


def file_too_large(max_bytes: int) -> ApiError:
    return too_large(f"The file is larger than the limit of {max_bytes} bytes.", param=FILE_FIELD)


class _FirstLine:
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


def _check_filename(filename: str) -> str:
    """The name without directories. The SDK calls raw bytes `upload`."""
    name = re.split(r"[/\\]", filename)[-1]
    if name != "upload" and not name.lower().endswith(".jsonl"):
        raise _not_jsonl()
    if len(name) > MAX_FILENAME_CHARS or not name.isprintable():
        message = f"A file name may have at most {MAX_FILENAME_CHARS} characters, all of them printable."
        raise invalid_value(FILE_FIELD, message)
    return name


def _not_jsonl() -> ApiError:
    return ApiError(400, "Invalid file format for Batch API. Must be .jsonl")
