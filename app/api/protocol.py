"""HTTP/1.1 as uvicorn speaks it, with our envelope around its one refusal and a bound on slow heads."""

import asyncio
import logging
import uuid

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.api.errors import ApiError

HEAD_SECONDS = 30.0  # from the connection, or the answer before, to the end of a request's head

log = logging.getLogger(__name__)


class BoundedHttp(H11Protocol):
    """A connection on which a request's head has to be complete in time.

    uvicorn itself waits for ever for a client that sends a byte of a header now and then.
    """

    head_seconds = HEAD_SECONDS
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and hang up. Nothing of it is repeated or logged."""
        refusal = ApiError(400, "The request is not valid HTTP/1.1, or its head is too long.").response()
        headers = [*refusal.raw_headers, (b"connection", b"close")]
        headers.append((b"x-request-id", f"req_{uuid.uuid4().hex}".encode()))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = [
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(refusal.body)),
                h11.EndOfMessage(),
            ]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(self.head_seconds, self._end_if_headless)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_if_headless(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            log.info("A connection is ended: its request did not come in time.")
            self.transport.close()
