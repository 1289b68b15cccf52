"""What handlers are given: the service's parts, and the body of a request as an object."""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Self, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.api.bodies import RequestBody
from app.api.errors import ApiError, from_validation, invalid_value, quota_exceeded, too_large
from app.db.limits import Limits, QuotaExceeded, check_stored_bytes, stored_bytes
from app.db.models import DEFAULT_OWNER
from app.db.pages import UnknownCursor
from app.db.session import Database
from app.settings import Settings
from app.storage import BlobWriter, Storage

MAX_JSON_BYTES = 1 << 20

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Body = TypeVar("Body", bound=RequestBody)


@dataclass(frozen=True)
class Service:
    """What the HTTP side is made of. `started_at` in unix seconds. A tenant's has an owner and its limits."""

    settings: Settings
    database: Database
    storage: Storage
    started_at: int
    owner: str = DEFAULT_OWNER
    own_limits: Limits | None = None

    def of(self, owner: str, limits: Limits) -> Self:
        """The service as the tenant `owner` may use it: others' rows do not exist in its database."""
        return replace(self, database=self.database.of(owner), owner=owner, own_limits=limits)

    @property
    def limits(self) -> Limits:
        return self.own_limits or Limits.of(self.settings, None)

    def check_stored_bytes(self, session: Session) -> None:
        """To be called where rows of more stored bytes were just made. Raises `ApiError` 429."""
        with within_quota():
            check_stored_bytes(session, self.owner, self.limits.max_stored_bytes)

    def check_room(self, num_bytes: int) -> None:
        """Raises `ApiError` 429 where a body of `num_bytes` cannot be stored whatever is in it."""
        limit = self.limits.max_stored_bytes
        if limit is None:
            return
        with self.database.read() as session:
            stored = stored_bytes(session, self.owner)
        if stored + num_bytes > limit:
            raise quota_exceeded(str(QuotaExceeded.of_bytes(stored + num_bytes, limit)))


def _whole_service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _service(request: Request) -> Service:
    """The service as the tenant who asks may use it."""
    return _whole_service(request).of(request.state.owner, request.state.limits)


ServiceDep = Annotated[Service, Depends(_service)]
WholeServiceDep = Annotated[Service, Depends(_whole_service)]  # for what is nobody's


@contextmanager
def within_quota() -> Iterator[None]:
    """What a quota refuses, as a 429."""
    try:
        yield
    except QuotaExceeded as error:
        raise quota_exceeded(str(error)) from None


def may_be_id(text: str) -> bool:
    """False for what cannot be the id of anything, and must not reach the database (NUL, endless text)."""
    return _ID.fullmatch(text) is not None


@contextmanager
def known_cursor(after: str | None) -> Iterator[None]:
    """Around the reading of a page: a cursor that names nothing is a 400.

    Starting at the top again instead would send a pager round for ever.
    """
    try:
        if after is not None and not may_be_id(after):
            raise UnknownCursor(after)
        yield
    except UnknownCursor:
        message = f"Invalid 'after': there is no object with the id '{after}'."
        raise invalid_value("after", message) from None


@contextmanager
def saving(service: Service, blob: BlobWriter) -> Iterator[Session]:
    """Make `blob` durable, then hand out the transaction for its row: a row never points at nothing.

    The blob goes where the block fails. Where the commit does, nobody knows whether the row is there: the
    blob then stays, and the keeper removes it in time if it has no row.
    """
    storage_key = blob.commit()
    with service.database.begin() as session:
        try:
            yield session
            session.flush()
        except BaseException:
            service.storage.delete(storage_key)
            raise


def json_body(model: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that reads and checks a JSON body; raises `ApiError` 400, 413 or 415."""

    async def read(request: Request) -> Body:
        value = parse_object(await read_body(request, MAX_JSON_BYTES))
        try:
            return model.model_validate(value)
        except ValidationError as error:
            raise from_validation(error.errors()) from None

    return read


async def read_body(request: Request, max_bytes: int) -> bytes:
    """A body that is declared to be JSON. Raises `ApiError` 413 or 415."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, "The request body must be application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large(f"The request body is larger than {max_bytes} bytes.")
    return bytes(body)


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in a body. Raises `ApiError` 400."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    return value
