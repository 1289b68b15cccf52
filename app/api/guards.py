"""What a request may be before its handler sees it: how long its head, how encoded and how slow its body."""

import asyncio
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import ApiError

MAX_TARGET_BYTES = 8 << 10
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10  # of names and values together


@dataclass(frozen=True)
class BodyPace:
    """How slow a body may come in.

    idle_seconds: most time without a byte. grace_seconds: after it, the body as a whole has to have come at
    `min_bytes_per_second`, so that a byte now and then does not hold a connection and a file for days.
    """

    idle_seconds: float = 30.0
    grace_seconds: float = 60.0
    min_bytes_per_second: int = 1_000

    def seconds_left(self, started_at: float, num_bytes: int) -> float:
        """How long to wait for the next bytes of a body that began at `started_at` (monotonic)."""
        deadline = started_at + self.grace_seconds + num_bytes / self.min_bytes_per_second
        return max(0.0, min(self.idle_seconds, deadline - time.monotonic()))


DEFAULT_PACE = BodyPace()


class RequestGuard:
    """Refuses heads that are too long and encoded bodies, and does not wait for bodies that are too slow."""

    def __init__(self, app: ASGIApp, *, pace: BodyPace) -> None:
        self.app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = _head_refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` with a time-out until the body is complete: what comes after it may take for ever."""
        started_at = time.monotonic()
        num_bytes = 0
        is_complete = False

        async def receive_in_time() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:
                return await receive()
            try:
                seconds = self._pace.seconds_left(started_at, num_bytes)
                message = await asyncio.wait_for(receive(), seconds)
            except TimeoutError:
                text = "The request body came in too slowly."
                raise ApiError(408, text, headers={"connection": "close"}) from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            return message

        return receive_in_time


def _head_refusal(scope: Scope) -> ApiError | None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return ApiError(414, f"The request URL is longer than {MAX_TARGET_BYTES} bytes.")
    headers = scope["headers"]
    num_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or num_bytes > MAX_HEADER_BYTES:
        message = f"The request has more than {MAX_HEADERS} headers, or more than {MAX_HEADER_BYTES} bytes."
        return ApiError(431, message)
    encoding = Headers(raw=headers).get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # A small body could unfold to any size; files are sent as they are.
        message = f"The content encoding '{encoding}' is not supported: send the body as it is."
        return ApiError(415, message)
    return None
