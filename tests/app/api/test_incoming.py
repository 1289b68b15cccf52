"""The upload form: whatever way its bytes are cut, and whatever is wrong with it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.errors import ApiError
from app.api.incoming import FILE_FIELD, TEXT_FIELDS, IncomingFields, IncomingFile
from app.api.multipart import MAX_TEXT_BYTES, FormParser

BOUNDARY = b"xXx"
LINE = b'{"custom_id":"a"}\n'


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, chunk: bytes) -> None:
        self.data += chunk


def text_part(name: str, value: str) -> bytes:
    return f'--xXx\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def file_part(content: bytes, filename: str = "in.jsonl", name: str = "file") -> bytes:
    head = f'--xXx\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
    return head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"


def receive(
    pieces: list[bytes], *, max_bytes: int = 10_000, max_line_bytes: int = 1_000
) -> tuple[IncomingFields, bytes]:
    sink = Sink()
    incoming = IncomingFile(sink, max_bytes=max_bytes, max_line_bytes=max_line_bytes)
    parser = FormParser(BOUNDARY, incoming, file_field=FILE_FIELD, text_fields=TEXT_FIELDS)
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return incoming.finish(), sink.data


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xXx--\r\n"


def refused(body: bytes, **limits: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        receive([body], **limits)
    return caught.value


PURPOSE = text_part("purpose", "batch")
ANCHOR = text_part("expires_after[anchor]", "created_at")
SECONDS = text_part("expires_after[seconds]", "3600")


@given(
    content=st.binary(max_size=300),
    order=st.permutations([0, 1, 2, 3]),
    cuts=st.lists(st.integers(0, 900), max_size=12),
)
def test_any_order_and_any_cut_give_the_same_bytes(content: bytes, order: list[int], cuts: list[int]) -> None:
    stored = LINE + content.replace(b"\r\n--xXx", b"")
    parts = [file_part(stored), PURPOSE, ANCHOR, SECONDS]
    body = form(*(parts[i] for i in order))
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    fields, data = receive([body[a:b] for a, b in pairwise(edges)])
    assert data == stored
    assert fields == IncomingFields("in.jsonl", "batch", len(stored), 3600)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"\xef\xbb\xbf" + LINE,
        b"\xef\xbb\xbf\r\n\r\n" + LINE,
        b"\r\n \n" + LINE,
        LINE + b"not json, but found by the batch's validation",
        b'{"long": "' + b"x" * 2_000 + b'"}\n',
        b"x" * 2_000,  # too long to look at here
    ],
)
def test_files_that_are_stored(content: bytes) -> None:
    body = form(PURPOSE, file_part(content))
    for size in (1, 7, len(body)):
        _, data = receive([body[i : i + size] for i in range(0, len(body), size)])
        assert data == content


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n", b"a,b\n1,2\n", b"[1]\n", b"3\n", b'{"a":\n', b'{"a":']
)
def test_what_is_not_jsonl(content: bytes) -> None:
    error = refused(form(PURPOSE, file_part(content)))
    assert (error.status, error.message) == (400, "Invalid file format for Batch API. Must be .jsonl")
    assert (error.param, error.code) == (None, None)


@pytest.mark.parametrize("name", ["in.csv", "in.json", "in", "in.jsonl.gz", "upload.txt", ""])
def test_names_that_are_refused(name: str) -> None:
    assert refused(form(PURPOSE, file_part(LINE, name))).message.endswith("Must be .jsonl")


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("upload", "upload"),
        ("IN.JSONL", "IN.JSONL"),
        ("../../etc/x.jsonl", "x.jsonl"),
        ("C:\\a\\ü.jsonl", "ü.jsonl"),
    ],
)
def test_names_that_are_kept_without_directories(given_name: str, kept: str) -> None:
    assert receive([form(PURPOSE, file_part(LINE, given_name))])[0].filename == kept


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (form(file_part(LINE)), "purpose", "missing_required_parameter"),
        (form(PURPOSE), "file", "missing_required_parameter"),
        (form(text_part("purpose", "vision")), "purpose", "invalid_value"),
        (form(PURPOSE, ANCHOR, file_part(LINE)), "expires_after[seconds]", "missing_required_parameter"),
        (form(PURPOSE, SECONDS, file_part(LINE)), "expires_after[anchor]", "missing_required_parameter"),
        (form(text_part("expires_after[anchor]", "now")), "expires_after[anchor]", "invalid_value"),
        (form(text_part("expires_after[seconds]", "3599")), "expires_after[seconds]", "invalid_value"),
        (form(text_part("expires_after[seconds]", "2592001")), "expires_after[seconds]", "invalid_value"),
        (form(text_part("expires_after[seconds]", "1e4")), "expires_after[seconds]", "invalid_value"),
        (form(text_part("color", "red")), "color", "unknown_parameter"),
        (form(PURPOSE, PURPOSE, file_part(LINE)), "purpose", "invalid_value"),
        (form(PURPOSE, file_part(LINE), file_part(LINE)), "file", "invalid_value"),
        (form(PURPOSE, text_part("file", "{}")), "file", "invalid_type"),
        (form(text_part("purpose", "b" * (MAX_TEXT_BYTES + 1))), "purpose", "invalid_value"),
        (form(PURPOSE, file_part(LINE, "x" * 300 + ".jsonl")), "file", "invalid_value"),
    ],
)
def test_forms_that_are_refused(body: bytes, param: str, code: str) -> None:
    error = refused(body)
    assert (error.status, error.param, error.code) == (400, param, code)


@given(cut=st.integers(1, 10_000))
def test_a_body_cut_short_is_never_taken_for_a_whole_one(cut: int) -> None:
    body = form(PURPOSE, file_part(LINE * 5)).removesuffix(b"--\r\n")
    assert refused(body[: len(body) - cut % len(body)]).status == 400


def test_the_limit_counts_the_file_alone() -> None:
    body = form(PURPOSE, file_part(LINE))
    assert receive([body], max_bytes=len(LINE))[0].num_bytes == len(LINE)
    error = refused(body, max_bytes=len(LINE) - 1)
    assert (error.status, error.headers) == (413, {"x-should-retry": "false"})


def test_garbage_is_a_malformed_body() -> None:
    assert "malformed" in refused(b"this is no form").message
