"""A form with one file in it, parsed while it arrives: nothing of the file stays in memory."""

from collections.abc import Collection
from typing import Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.api.errors import ApiError, invalid_value, missing_parameter, too_large, unknown_parameter

# Parsing and writing a block happens in a thread: large enough that the hand-over is cheap.
BLOCK_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 10


class FormReceiver(Protocol):
    """Takes the parts of a form as they come, and refuses by raising `ApiError`."""

    def text(self, name: str, value: str) -> None: ...

    def start_file(self, filename: str) -> None: ...

    def write(self, chunk: bytes) -> None: ...


class FormParser:
    """Feeds `receiver` from the bytes of a multipart body: fields in any order, each at most once."""

    def __init__(
        self, boundary: bytes, receiver: FormReceiver, *, file_field: str, text_fields: Collection[str]
    ) -> None:
        self._receiver = receiver
        self._file_field = file_field
        self._text_fields = text_fields
        self._seen: set[str] = set()
        self._name = ""
        self._text = bytearray()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Parse the next bytes; raises `ApiError` on a broken form and on what the receiver refuses."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise ApiError(400, f"The multipart body is malformed: {error}.") from error

    def finish(self) -> None:
        """Call after the last byte: raises `ApiError` where the body was cut short or has no file."""
        if not self._ended:
            raise ApiError(400, "The multipart body ends before its closing boundary.")
        if self._file_field not in self._seen:
            raise missing_parameter(self._file_field)

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._text.clear()

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = self._name = options.get(b"name", b"").decode(errors="replace")
        is_file = name == self._file_field
        if not is_file and name not in self._text_fields:
            raise unknown_parameter(name)
        if name in self._seen:
            raise invalid_value(name, f"The field '{name}' was given more than once.")
        if is_file and b"filename" not in options:
            message = f"Invalid type for '{name}': expected a file, but got a text instead."
            raise ApiError(400, message, param=name, code="invalid_type")
        self._seen.add(name)
        if is_file:
            self._receiver.start_file(options[b"filename"].decode(errors="replace"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file_field:
            self._receiver.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_TEXT_BYTES:
            raise invalid_value(self._name, f"The field '{self._name}' is too long.")

    def _on_part_end(self) -> None:
        if self._name != self._file_field:
            self._receiver.text(self._name, self._text.decode(errors="replace"))

    def _on_end(self) -> None:
        self._ended = True


def form_boundary(request: Request) -> bytes:
    """The boundary named by the request's content type; raises `ApiError` where it is not a form."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise ApiError(415, "The request body must be multipart/form-data.")
    if not options.get(b"boundary"):
        raise ApiError(400, "The content type of the request names no multipart boundary.")
    return options[b"boundary"]


async def receive_form(request: Request, parser: FormParser, *, max_bytes: int) -> None:
    """Read the body to its end through `parser`, in threads: the disk never holds up the event loop.

    Raises `ApiError` 413 where it is longer than `max_bytes`, and what the parser raises.
    """
    block = bytearray()
    num_bytes = 0
    async for chunk in request.stream():
        block += chunk
        num_bytes += len(chunk)
        if len(block) >= BLOCK_BYTES or num_bytes > max_bytes:
            await run_in_threadpool(parser.feed, bytes(block))
            block.clear()
        if num_bytes > max_bytes:  # what lies around the file would else be bounded by nothing
            raise too_large(f"The form is larger than {max_bytes} bytes.")
    await run_in_threadpool(parser.feed, bytes(block))
    parser.finish()
