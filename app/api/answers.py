"""Where clients wait for the answers to direct requests (app/db/direct.py)."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from app.api.deps import Service, saving
from app.api.errors import SERVER_ERROR, ApiError, is_database_down, unavailable
from app.batch_input import InputLine
from app.db.direct import add_direct, direct_payloads
from app.db.ids import new_id
from app.db.workers import unserved_models
from app.housekeeping import forget_direct

LOOK_SECONDS = 0.05  # between looks for answers: one query for all that wait
# A request that nobody deleted in time, its api having been killed, is deleted by the keeper so long after.
_MARGIN_SECONDS = 10

log = logging.getLogger(__name__)


class Desk:
    """Hands requests to the workers and waits for their answers; one task looks for all of them.

    service: the whole one; whose a request is comes with it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._num_here = 0
        self._waiting: dict[str, asyncio.Future[bytes]] = {}  # by batch
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one client; to be had before its body is read. Raises `ApiError` 429."""
        most = self._service.settings.max_direct_requests
        if self._num_here >= most:
            raise ApiError(
                429,
                f"{most} requests wait for their answers already: try again, or send this as a batch.",
                code="rate_limit_exceeded",
                type="rate_limit_error",
                headers={"retry-after": "1"},
            )
        self._num_here += 1
        try:
            yield
        finally:
            self._num_here -= 1

    async def answer(self, request: Request, endpoint: str, line: InputLine, content: bytes) -> bytes:
        """The line of an output or error file that answers the line `content`.

        Raises `ApiError` 503 where no worker serves the model and 504 after `direct_seconds`, and
        ClientDisconnect. Whatever comes of it, no trace of the request is left.
        """
        batch_id = new_id("batch_")
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[batch_id] = answered
        gone = asyncio.create_task(_gone(request))
        try:
            await run_in_threadpool(self._enter, batch_id, request.state.owner, endpoint, line, content)
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            seconds = self._service.settings.direct_seconds
            either: set[asyncio.Future[Any]] = {answered, gone}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                return answered.result()
            if gone.done():
                raise ClientDisconnect
            raise _too_late(seconds)
        finally:
            gone.cancel()
            del self._waiting[batch_id]
            await asyncio.shield(run_in_threadpool(self._leave, batch_id))

    def _enter(self, batch_id: str, owner: str, endpoint: str, line: InputLine, content: bytes) -> None:
        service = self._service
        with service.database.read() as session:
            if unserved_models(session, [line.model]) is not None:
                raise unavailable(
                    f"No worker that serves the model '{line.model}' is ready: try again later."
                )
        with service.storage.create() as blob:
            blob.write(content)
            with saving(service, blob) as session:
                add_direct(
                    session,
                    batch_id,
                    owner=owner,
                    endpoint=endpoint,
                    line=line,
                    storage_key=blob.key,
                    num_bytes=len(content),
                    seconds=service.settings.direct_seconds + _MARGIN_SECONDS,
                )

    def _leave(self, batch_id: str) -> None:
        try:
            forget_direct(self._service.database, self._service.storage, batch_id)
        except (SQLAlchemyError, OSError) as error:
            log.warning("%s is left to the keeper to remove: %s", batch_id, error)

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                payloads = await run_in_threadpool(self._payloads, list(self._waiting))
            except Exception as error:
                if is_database_down(error):
                    continue  # whoever waits has time
                self._fail(error)
                return
            for batch_id, payload in payloads.items():
                waiting = self._waiting.get(batch_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(payload)

    def _payloads(self, batch_ids: list[str]) -> dict[str, bytes]:
        with self._service.database.read() as session:
            return direct_payloads(session, batch_ids)

    def _fail(self, error: Exception) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)


async def _gone(request: Request) -> None:
    """Ends when the client does; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _too_late(seconds: int) -> ApiError:
    return ApiError(
        504,
        f"The answer did not come within {seconds} seconds: try again, or send this as a batch, which waits.",
        code="timeout",
        type=SERVER_ERROR,
        headers={"x-should-retry": "true"},
    )
