"""An uploaded batch file, read line by line: each becomes an `InputLine` or a `LineError`.

Memory does not grow with the file, but for 16 bytes a line that find duplicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple

import orjson

from app.token_estimate import estimated_tokens

_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 64 * 1024
_MAX_CUSTOM_ID_CHARS = 512
_MAX_ECHO_CHARS = 128  # of a value repeated in a message

# What a body must have beside its model, and the name that messages give the endpoint.
_REQUIRED_BODY_KEY = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/score": "text_2",
    "/v1/rerank": "documents",
    "/v1/responses": "input",
}
_ENDPOINT_TITLE = {
    "/v1/chat/completions": "Chat Completions",
    "/v1/completions": "Completions",
    "/v1/embeddings": "Embeddings",
    "/v1/score": "Score",
    "/v1/rerank": "Rerank",
    "/v1/responses": "Responses",
}


class InputLine(NamedTuple):
    """A valid request on the physical line `line`, 1-based: the blob's bytes [offset, offset + length).

    num_tokens: that it may take at most, by an estimate.
    """

    line: int
    custom_id: str
    offset: int
    length: int
    model: str
    num_tokens: int = 0


class Place(NamedTuple):
    """Where an invalid line lies; its custom_id if that is good and no earlier line has it."""

    offset: int
    length: int
    custom_id: str | None


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a line, or with the file as a whole if `line` and `place` are None."""

    code: str
    message: str
    param: str | None
    line: int | None
    place: Place | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The shape in which a batch shows it."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


@dataclass(frozen=True, slots=True)
class InputLimits:
    """How much a file may hold.

    max_embedding_inputs: texts of all lines together, where the endpoint is /v1/embeddings.
    single_model: all requests must name the same model.
    default_max_tokens: output of a chat that names no bound, for the estimate of its tokens.
    """

    max_line_bytes: int
    max_requests: int
    max_embedding_inputs: int = 50_000
    single_model: bool = False
    default_max_tokens: int | None = None


class _Invalid(Exception):
    """A check failed. Never leaves this module."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def read_lines(
    blob: BinaryIO, *, endpoint: str, served_models: Sequence[str], limits: InputLimits
) -> Iterator[InputLine | LineError]:
    """Check `blob` line by line, in order; blank lines are passed over.

    Ends with a `LineError` without a line if there is no request at all, or if there are more requests, or
    more blank lines, than `limits.max_requests`.
    """
    checker = _Checker(endpoint, frozenset(served_models), limits)
    num_requests = num_blank = 0
    for line, offset, length, content in _split(blob, limits.max_line_bytes):
        if content is not None and not content:
            num_blank += 1
            if num_blank > limits.max_requests:  # 200 MB of newlines would keep us busy for minutes
                message = f"The input file has more than {limits.max_requests:,} blank lines."
                yield LineError("invalid_request", message, None, None)
                return
            continue
        num_requests += 1
        if num_requests > limits.max_requests:
            message = (
                f"The input file has more than the {limits.max_requests:,} requests that a batch may have."
            )
            yield LineError("too_many_tasks", message, None, None)
            return
        try:
            custom_id, model, num_tokens = checker.check(content)
        except _Invalid as error:
            place = Place(offset, length, checker.custom_id)
            yield LineError(error.code, error.message, error.param, line, place)
        else:
            if checker.num_embedding_inputs > limits.max_embedding_inputs:
                message = (
                    f"The input file has more than the {limits.max_embedding_inputs:,} inputs in all that a "
                    "batch of embeddings may have."
                )
                yield LineError("too_many_tasks", message, None, None)
                return
            yield InputLine(line, custom_id, offset, length, model, num_tokens)
    if num_requests == 0:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        yield LineError("empty_file", message, None, None)


def _split(blob: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, int, int, bytes | None]]:
    """Physical lines as (number, offset, length, content): without the white space around it.

    The content of a line that is too long is None, and its length has the white space in it.
    """
    line = start = 0
    while raw := blob.readline(max_line_bytes + 2):  # 2: room for CRLF
        line += 1
        offset = start
        start += len(raw)
        is_cut = len(raw) == max_line_bytes + 2 and not raw.endswith(b"\n")
        if is_cut or len(raw.rstrip(b"\r\n")) > max_line_bytes:
            while raw and not raw.endswith(b"\n"):
                raw = blob.readline(_SKIP_BYTES)
                start += len(raw)
            yield line, offset, start - offset - raw.endswith(b"\n"), None
            continue
        content = raw.removeprefix(_BOM) if line == 1 else raw
        content = content.strip(b" \t\r\n")
        yield line, offset + raw.find(content), len(content), content


class _Checker:
    """The checks of one file: knows which custom_ids, which model and how many inputs came before.

    custom_id: of the line checked last, if it is good and no earlier line has it.
    """

    custom_id: str | None = None

    def __init__(self, endpoint: str, served_models: frozenset[str], limits: InputLimits) -> None:
        self._endpoint = endpoint
        self._served_models = served_models
        self._limits = limits
        self._seen: set[bytes] = set()
        self._first_model: str | None = None
        self.num_embedding_inputs = 0

    def check(self, content: bytes | None) -> tuple[str, str, int]:
        """(custom_id, model, estimated tokens) of a line. Raises _Invalid: the first thing that is wrong."""
        self.custom_id = None
        if content is None:
            raise _Invalid(
                "invalid_request",
                f"This line is longer than {self._limits.max_line_bytes:,} bytes, the limit.",
            )
        try:
            request = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _Invalid("invalid_json_line", "This line is not parseable as valid JSON.") from error
        if not isinstance(request, dict):
            raise _Invalid("invalid_request", "Each line must be a JSON object")
        custom_id = self._check_custom_id(request.get("custom_id"))
        self._check_target(request.get("method"), request.get("url"))
        model = self._check_body(request.get("body"))
        default = self._limits.default_max_tokens
        return custom_id, model, estimated_tokens(len(content), request["body"], self._endpoint, default)

    def _check_custom_id(self, custom_id: Any) -> str:
        if custom_id is None:
            raise _missing("custom_id")
        if not isinstance(custom_id, str):
            raise _wrong_type("custom_id", "a string", custom_id)
        if not 0 < len(custom_id) <= _MAX_CUSTOM_ID_CHARS or "\0" in custom_id:
            raise _Invalid(
                "invalid_value",
                f"Invalid 'custom_id': give it 1 to {_MAX_CUSTOM_ID_CHARS} characters, none of them NUL.",
                "custom_id",
            )
        digest = blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            raise _Invalid(
                "duplicate_custom_id",
                f"The custom_id '{custom_id}' for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch.",
                "custom_id",
            )
        self._seen.add(digest)
        self.custom_id = custom_id
        return custom_id

    def _check_target(self, method: Any, url: Any) -> None:
        if method is None:
            raise _missing("method")
        if method != "POST":
            raise _Invalid(
                "invalid_method", f"Invalid method: '{_echo(method)}'. Only 'POST' is supported.", "method"
            )
        if url is None:
            raise _missing("url")
        if url != self._endpoint:
            raise _Invalid(
                "invalid_url",
                "The URL provided for this request does not match the batch endpoint.",
                "url",
            )

    def _check_body(self, body: Any) -> str:
        if body is None:
            raise _missing("body")
        if not isinstance(body, dict):
            raise _wrong_type("body", "an object", body)
        if body.get("stream") is True:
            title = _ENDPOINT_TITLE[self._endpoint]
            raise _Invalid(
                "streaming_unsupported",
                f"{title}: Streaming is not supported in the Batch API.",
                "body.stream",
            )
        model = self._check_model(body.get("model"))
        required = _REQUIRED_BODY_KEY[self._endpoint]
        if body.get(required) is None:
            raise _Invalid(
                "invalid_request", f"{required.capitalize()} parameter is required.", f"body.{required}"
            )
        if self._endpoint == "/v1/embeddings":
            self.num_embedding_inputs += _num_inputs(body["input"])
        return model

    def _check_model(self, model: Any) -> str:
        if model is None:
            raise _Invalid("invalid_request", "Model parameter is required.", "body.model")
        if not isinstance(model, str):
            raise _wrong_type("body.model", "a string", model)
        if model not in self._served_models:
            raise _Invalid(
                "model_not_found",
                f"The provided model '{_echo(model)}' is not supported by the Batch API. "
                f"Served here: {', '.join(sorted(self._served_models))}.",
                "body.model",
            )
        if self._first_model is None:
            self._first_model = model
        elif self._limits.single_model and model != self._first_model:
            raise _Invalid(
                "mismatched_model",
                f"The model '{model}' for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model.",
                "body.model",
            )
        return model


def _num_inputs(value: Any) -> int:
    """Of an `input`: an array of texts or of arrays of token ids holds several."""
    return len(value) if isinstance(value, list) and value and isinstance(value[0], str | list) else 1


def _missing(name: str) -> _Invalid:
    return _Invalid("missing_required_parameter", f"Missing required parameter: '{name}'.", name)


def _wrong_type(name: str, expected: str, value: Any) -> _Invalid:
    message = f"Invalid type for '{name}': expected {expected}, but got {_json_type(value)} instead."
    return _Invalid("invalid_type", message, name)


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def _echo(value: Any) -> str:
    """`value` for a message: never a megabyte of it."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _MAX_ECHO_CHARS else f"{text[:_MAX_ECHO_CHARS]}..."
