"""The header Idempotency-Key: a request under a key makes one object, however often it is sent."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import orjson
from fastapi import Header

from app.api.errors import conflict
from app.db.idempotency import KeyReused, RequestKey

HEADER = "Idempotency-Key"

IdempotencyKey = Annotated[str | None, Header(alias=HEADER, pattern=r"^[\x21-\x7e]{1,255}$")]


def request_key(key: str | None, operation: str, content: object) -> RequestKey | None:
    """The key with a digest of what is asked for: `content`, a JSON value."""
    if key is None:
        return None
    asked = orjson.dumps([operation, content], option=orjson.OPT_SORT_KEYS)
    return RequestKey(key, hashlib.sha256(asked).hexdigest())


@contextmanager
def unused_key() -> Iterator[None]:
    """Around the making of the object: a key that stands for another request is a 409."""
    try:
        yield
    except KeyReused as error:
        message = f"The {HEADER} '{error}' has been used for another request."
        raise conflict(message, code="idempotency_key_reused") from None
