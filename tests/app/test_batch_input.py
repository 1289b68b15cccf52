"""Validation of single lines: every row of the contract's table, and every oddity of files."""

import io
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batch_input import InputLimits, InputLine, LineError, read_lines

CHAT = "/v1/chat/completions"
LIMITS = InputLimits(max_line_bytes=4_096, max_requests=100)


def _request(custom_id: Any = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    request = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | changes
    return {key: value for key, value in request.items() if value is not ...}


def _body(**changes: Any) -> dict[str, Any]:
    body = _request()["body"] | changes
    return {key: value for key, value in body.items() if value is not ...}


def _read(data: bytes, *, endpoint: str = CHAT, limits: InputLimits = LIMITS) -> list[InputLine | LineError]:
    return list(read_lines(io.BytesIO(data), endpoint=endpoint, served_models=["m", "n"], limits=limits))


def _line(request: object) -> bytes:
    return orjson.dumps(request) + b"\n"


def _only_error(data: bytes, **options: Any) -> LineError:
    errors = [item for item in _read(data, **options) if isinstance(item, LineError)]
    assert len(errors) == 1
    return errors[0]


def test_a_good_line() -> None:
    data = _line(_request())
    (line,) = _read(data)
    assert isinstance(line, InputLine)
    assert line[:5] == (1, "a", 0, len(data) - 1, "m")
    assert line.num_tokens > len(data) // 3


_NO_JSON = ("invalid_json_line", None, "This line is not parseable as valid JSON.")
_NO_OBJECT = ("invalid_request", None, "Each line must be a JSON object")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{", _NO_JSON),
        (b'{"a": NaN}', _NO_JSON),
        (b'{"a": "\xff"}', _NO_JSON),
        (b'{"a": "\x00"}', _NO_JSON),
        (b'{"a": "\\ud800"}', _NO_JSON),
        (b"{} {}", _NO_JSON),
        (b"[1]", _NO_OBJECT),
        (b'"text"', _NO_OBJECT),
        (b"null", _NO_OBJECT),
        (b"7", _NO_OBJECT),
    ],
)
def test_lines_that_are_no_json_objects(raw: bytes, expected: tuple[str, str | None, str]) -> None:
    error = _only_error(_line(_request()) + raw + b"\n")
    assert (error.code, error.param, error.message, error.line) == (*expected, 2)


_URL_MESSAGE = "The URL provided for this request does not match the batch endpoint."


@pytest.mark.parametrize(
    ("request_line", "code", "param", "message"),
    [
        *[
            (
                _request(**{key: absent}),
                "missing_required_parameter",
                key,
                f"Missing required parameter: '{key}'.",
            )
            for key in ("custom_id", "method", "url", "body")
            for absent in (..., None)
        ],
        (
            _request(custom_id=7),
            "invalid_type",
            "custom_id",
            "Invalid type for 'custom_id': expected a string, but got an integer instead.",
        ),
        *[
            (
                _request(custom_id),
                "invalid_value",
                "custom_id",
                "Invalid 'custom_id': give it 1 to 512 characters, none of them NUL.",
            )
            for custom_id in ("", "x" * 513, "a\0b")
        ],
        (
            _request(method="GET"),
            "invalid_method",
            "method",
            "Invalid method: 'GET'. Only 'POST' is supported.",
        ),
        (
            _request(method=[1]),
            "invalid_method",
            "method",
            "Invalid method: '[1]'. Only 'POST' is supported.",
        ),
        (_request(url="/v1/completions"), "invalid_url", "url", _URL_MESSAGE),
        (_request(url=CHAT + "/"), "invalid_url", "url", _URL_MESSAGE),
        (_request(url=3), "invalid_url", "url", _URL_MESSAGE),
        (
            _request(body=[]),
            "invalid_type",
            "body",
            "Invalid type for 'body': expected an object, but got an array instead.",
        ),
        (
            _request(body=_body(stream=True)),
            "streaming_unsupported",
            "body.stream",
            "Chat Completions: Streaming is not supported in the Batch API.",
        ),
        *[
            (
                _request(body=_body(model=absent)),
                "invalid_request",
                "body.model",
                "Model parameter is required.",
            )
            for absent in (..., None)
        ],
        (
            _request(body=_body(model=True)),
            "invalid_type",
            "body.model",
            "Invalid type for 'body.model': expected a string, but got a boolean instead.",
        ),
        (
            _request(body=_body(model="x")),
            "model_not_found",
            "body.model",
            "The provided model 'x' is not supported by the Batch API. Served here: m, n.",
        ),
        *[
            (
                _request(body=_body(messages=absent)),
                "invalid_request",
                "body.messages",
                "Messages parameter is required.",
            )
            for absent in (..., None)
        ],
    ],
)
def test_each_error_alone(request_line: dict[str, Any], code: str, param: str, message: str) -> None:
    error = _only_error(_line(_request("first")) + _line(request_line))
    assert error == LineError(code, message, param, 2)


@pytest.mark.parametrize(
    ("endpoint", "key", "title"),
    [
        ("/v1/completions", "prompt", "Completions"),
        ("/v1/embeddings", "input", "Embeddings"),
        ("/v1/responses", "input", "Responses"),
    ],
)
def test_other_endpoints(endpoint: str, key: str, title: str) -> None:
    good = _request(url=endpoint, body={"model": "m", key: "text"})
    assert isinstance(_read(_line(good), endpoint=endpoint)[0], InputLine)
    missing = _only_error(_line(_request(url=endpoint)), endpoint=endpoint)
    assert (missing.param, missing.message) == (f"body.{key}", f"{key.capitalize()} parameter is required.")
    stream = _request(url=endpoint, body={"model": "m", key: "text", "stream": True})
    assert _only_error(_line(stream), endpoint=endpoint).message.startswith(f"{title}: Streaming")


def test_values_in_a_body_are_not_judged_here() -> None:
    """They fail their own line later, not the batch."""
    body = _body(temperature=9, stream=False, messages=[], unheard_of=1)
    assert isinstance(_read(_line(_request(body=body)))[0], InputLine)


def test_a_duplicate_custom_id_is_told_of_on_each_repeat() -> None:
    data = _line(_request("a")) + _line(_request("b")) + _line(_request("a")) + _line(_request("a", url="x"))
    message = (
        "The custom_id 'a' for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch."
    )
    assert _read(data)[2:] == [LineError("duplicate_custom_id", message, "custom_id", n) for n in (3, 4)]


def test_mixed_models_are_allowed_unless_one_is_asked_for() -> None:
    data = _line(_request("a")) + _line(_request("b", body=_body(model="n")))
    assert [item.model for item in _read(data) if isinstance(item, InputLine)] == ["m", "n"]
    single = InputLimits(max_line_bytes=4_096, max_requests=100, single_model=True)
    error = _only_error(data, limits=single)
    assert (error.code, error.param, error.line) == ("mismatched_model", "body.model", 2)
    assert error.message == (
        "The model 'n' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model."
    )


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_requests(data: bytes) -> None:
    message = "The input file is empty. Please ensure that the batch contains at least one request."
    assert _read(data) == [LineError("empty_file", message, None, None)]


def test_too_many_requests() -> None:
    limits = InputLimits(max_line_bytes=4_096, max_requests=2)
    data = b"".join(_line(_request(f"r{n}")) for n in range(4))
    assert all(isinstance(item, InputLine) for item in _read(data[: data.index(b"r2") - 14], limits=limits))
    *lines, error = _read(data, limits=limits)
    assert len(lines) == 2
    assert error == LineError(
        "too_many_tasks", "The input file has more than the 2 requests that a batch may have.", None, None
    )


def test_too_many_blank_lines() -> None:
    limits = InputLimits(max_line_bytes=4_096, max_requests=2)
    assert isinstance(_read(b"\n\r\n" + _line(_request("a")), limits=limits)[0], InputLine)
    error = _only_error(_line(_request("a")) + b"\n \n\n", limits=limits)
    assert error == LineError("invalid_request", "The input file has more than 2 blank lines.", None, None)


def test_five_errors_at_once_between_blank_lines_and_with_a_byte_order_mark() -> None:
    rows = [
        b"\xef\xbb\xbf" + orjson.dumps(_request("a")),  # 1
        b"",
        b"not json",  # 3
        orjson.dumps(_request("a")),  # 4
        b" \t",
        orjson.dumps(_request("b", method="PUT")),  # 6
        orjson.dumps(_request("c", url="/v1")),  # 7
        b"",
        orjson.dumps(_request("d", body=_body(model="gpt"))),  # 9
        b"  " + orjson.dumps(_request("e")) + b" ",  # 10
    ]
    for newline in (b"\n", b"\r\n"):
        items = _read(newline.join(rows))
        assert [(item.line, item.code) for item in items if isinstance(item, LineError)] == [
            (3, "invalid_json_line"),
            (4, "duplicate_custom_id"),
            (6, "invalid_method"),
            (7, "invalid_url"),
            (9, "model_not_found"),
        ]
        assert [(item.line, item.custom_id) for item in items if isinstance(item, InputLine)] == [
            (1, "a"),
            (10, "e"),
        ]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_line_length_limit_is_exact(newline: bytes) -> None:
    longest = orjson.dumps(_request("a"))
    limits = InputLimits(max_line_bytes=len(longest), max_requests=9)
    for end in (newline, b""):
        assert isinstance(_read(longest + end, limits=limits)[0], InputLine)
        longer = orjson.dumps(_request("ab"))
        assert _only_error(longer + end, limits=limits).code == "invalid_request"


@pytest.mark.parametrize("num_bytes", [200, 70_000, 1_000_000])
@pytest.mark.parametrize("filler", [b"x", b" ", b"\r"])
def test_a_line_that_is_too_long_is_one_error(num_bytes: int, filler: bytes) -> None:
    data = filler * num_bytes + b"{}\n" + _line(_request("a")) + filler * num_bytes
    error, line, *rest = _read(data, limits=InputLimits(max_line_bytes=150, max_requests=9))
    assert error == LineError("invalid_request", "This line is longer than 150 bytes, the limit.", None, 1)
    assert isinstance(line, InputLine)
    assert orjson.loads(data[line.offset : line.offset + line.length])["custom_id"] == "a"
    assert [item.line for item in rest] == [3]


def test_no_more_than_one_line_is_read_at_a_time() -> None:
    class Blob(io.BytesIO):
        largest_read = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            data = super().readline(size)
            Blob.largest_read = max(Blob.largest_read, len(data))
            return data

        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("reads the whole file")

    list(
        read_lines(
            Blob(b"x" * 3_000_000),
            endpoint=CHAT,
            served_models=[],
            limits=InputLimits(max_line_bytes=1_000, max_requests=9),
        )
    )
    assert Blob.largest_read <= 64 * 1024


def test_messages_never_repeat_a_huge_value() -> None:
    data = _line(_request("a", method="P" * 3_000)) + _line(_request("b", body=_body(model="n" * 3_000)))
    assert all(isinstance(item, LineError) and len(item.message) < 300 for item in _read(data))


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    custom_ids=st.lists(_TEXT.filter(lambda text: text != "" and "\0" not in text), unique=True, min_size=1),
    gaps=st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n \t\r\n"]), min_size=1),
    has_mark=st.booleans(),
    content=_TEXT,
    is_ascii=st.booleans(),
)
def test_every_line_is_found_where_it_lies(
    custom_ids: list[str], gaps: list[bytes], has_mark: bool, content: str, is_ascii: bool
) -> None:
    """Offset and length give back each line's own JSON, and the line number counts newlines before it."""
    data = b"\xef\xbb\xbf" if has_mark else b""
    for n, custom_id in enumerate(custom_ids):
        request = _request(custom_id, body=_body(messages=[{"role": "user", "content": content}]))
        data += json.dumps(request, ensure_ascii=is_ascii).encode() + gaps[n % len(gaps)]
    items = _read(data, limits=InputLimits(max_line_bytes=4_096, max_requests=10_000))
    assert [item.custom_id for item in items if isinstance(item, InputLine)] == custom_ids
    for item in items:
        assert isinstance(item, InputLine)
        assert orjson.loads(data[item.offset : item.offset + item.length])["custom_id"] == item.custom_id
        assert item.line == data[: item.offset].count(b"\n") + 1


@given(data=st.binary(max_size=300))
def test_no_bytes_break_it(data: bytes) -> None:
    for item in _read(data, limits=InputLimits(max_line_bytes=64, max_requests=5)):
        assert isinstance(item, LineError)


EMBEDDINGS = "/v1/embeddings"


def _inputs(custom_id: str, given: Any) -> bytes:
    return _line(_request(custom_id, url=EMBEDDINGS, body={"model": "m", "input": given}))


def test_the_inputs_of_an_embeddings_batch_are_counted_over_all_lines() -> None:
    limits = InputLimits(max_line_bytes=4_096, max_requests=100, max_embedding_inputs=6)
    # 1 text, 1 array of token ids, 2 texts, 2 arrays of token ids
    full = _inputs("a", "x") + _inputs("b", [1, 2, 3]) + _inputs("c", ["x", "y"]) + _inputs("d", [[1], [2]])
    assert all(isinstance(item, InputLine) for item in _read(full, endpoint=EMBEDDINGS, limits=limits))
    *lines, error = _read(full + _inputs("e", "x"), endpoint=EMBEDDINGS, limits=limits)
    assert len(lines) == 4
    message = "The input file has more than the 6 inputs in all that a batch of embeddings may have."
    assert error == LineError("too_many_tasks", message, None, None)


@pytest.mark.parametrize(
    ("endpoint", "title", "name"),
    [
        ("/v1/embeddings", "Embeddings", "input"),
        ("/v1/score", "Score", "text_2"),
        ("/v1/rerank", "Rerank", "documents"),
    ],
)
def test_bodies_of_embedding_endpoints(endpoint: str, title: str, name: str) -> None:
    request = _request(url=endpoint, body={"model": "m"})
    error = _only_error(_line(request), endpoint=endpoint)
    message = f"{name.capitalize()} parameter is required."
    assert error == LineError("invalid_request", message, f"body.{name}", 1)
    request["body"] |= {name: "x", "stream": True}
    message = f"{title}: Streaming is not supported in the Batch API."
    assert _only_error(_line(request), endpoint=endpoint).message == message
