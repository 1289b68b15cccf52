"""A stored blob as a response: streamed, in whole or in one range of bytes."""

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from app.api.errors import ApiError

CHUNK_BYTES = 256 << 10

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def blob_response(
    request: Request, open_blob: Callable[[], BinaryIO], *, num_bytes: int, filename: str, etag: str
) -> Response:
    """Stream `num_bytes` from `open_blob()`. The content of a file never changes, so its id is its ETag.

    The blob is opened before the response begins: a file deleted during a download is still sent to its end.
    Raises `ApiError` 416 for a range outside the file.
    """
    headers = {
        "accept-ranges": "bytes",
        "etag": f'"{etag}"',
        "content-disposition": f"attachment; {_disposition(filename)}",
    }
    if request.headers.get("if-none-match") in ("*", headers["etag"]):
        return Response(status_code=304, headers=headers)
    wanted = _wanted_range(request, num_bytes, headers["etag"])
    start, stop = wanted or (0, num_bytes)
    headers["content-length"] = str(stop - start)
    if wanted is not None:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{num_bytes}"
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    body = _chunks(open_blob(), start, stop)
    return StreamingResponse(body, status, headers=headers, media_type="application/octet-stream")


def _chunks(blob: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    with blob:
        blob.seek(start)
        while start < stop:
            chunk = blob.read(min(CHUNK_BYTES, stop - start))
            if not chunk:
                raise EOFError(f"a blob ends {stop - start} bytes too early")
            start += len(chunk)
            yield chunk


def _wanted_range(request: Request, num_bytes: int, etag: str) -> tuple[int, int] | None:
    """[start, stop) of a single range; None for the whole file, the right answer to any other header."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match[0] == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match[1], match[2]
    if not first:
        start, stop = max(num_bytes - int(last), 0), num_bytes
    else:
        start, stop = int(first), min(int(last) + 1, num_bytes) if last else num_bytes
        if last and int(last) < int(first):
            return None
    if start >= stop:
        message = f"The range '{match[0]}' lies outside the file of {num_bytes} bytes."
        raise ApiError(416, message, headers={"content-range": f"bytes */{num_bytes}"})
    return start, stop


def _disposition(filename: str) -> str:
    if filename.isascii() and '"' not in filename and "\\" not in filename:
        return f'filename="{filename}"'
    return f"filename*=UTF-8''{quote(filename)}"
