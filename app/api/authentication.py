"""Who is asking: settled before a byte of the body is read."""

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import ApiError
from app.api.middleware import cross_site_refusal
from app.db.keys import any_keys, owner_of
from app.db.models import DEFAULT_OWNER
from app.db.session import Database

# They tell nothing about anybody's work, and probes have no keys.
_PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})


class Authentication:
    """Finds the tenant of each request by its key and leaves its name in `request.state.owner`.

    A service for which no key was ever made is open, if only this machine can reach it (`on_loopback`).
    """

    def __init__(self, app: ASGIApp, *, database: Database, on_loopback: bool) -> None:
        self.app = app
        self._database = database
        self._on_loopback = on_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PUBLIC_PATHS:
            found = await run_in_threadpool(self._find_owner, Headers(scope=scope))
            if isinstance(found, ApiError):
                await found.response()(scope, receive, send)
                return
            scope.setdefault("state", {})["owner"] = found
        await self.app(scope, receive, send)

    def _find_owner(self, headers: Headers) -> str | ApiError:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        with self._database.read() as session:
            owner = owner_of(session, key)
            if owner is not None:
                return owner
            is_open = self._on_loopback and not any_keys(session)
        if is_open:
            return cross_site_refusal(headers) or DEFAULT_OWNER
        return _unauthorized("Incorrect API key provided." if key else _NO_KEY)


_NO_KEY = "You did not provide an API key: send it in the header 'Authorization: Bearer KEY'."


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
