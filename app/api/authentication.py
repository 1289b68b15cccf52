"""Who is asking, and whether it may ask now: settled before a byte of the body is read."""

from dataclasses import dataclass, field, replace

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import RATE_LIMIT, ApiError
from app.api.middleware import cross_site_refusal
from app.db.keys import find_tenant, open_tenant
from app.db.limits import Limits, Minute, count_request
from app.db.session import Database
from app.settings import Settings

# They tell nothing about anybody's work, and probes have no keys.
_PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})


@dataclass(frozen=True)
class _Admitted:
    """A tenant that may ask. `headers`: what its answer says of its rate limit."""

    owner: str
    limits: Limits
    headers: dict[str, str] = field(default_factory=dict)


class Authentication:
    """Finds the tenant of each request by its key; leaves its name and limits in `request.state`.

    A service for which no key was ever made is open, if only this machine can reach it (`on_loopback`).
    """

    def __init__(self, app: ASGIApp, *, database: Database, settings: Settings, on_loopback: bool) -> None:
        self.app = app
        self._database = database
        self._settings = settings
        self._on_loopback = on_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        found = await run_in_threadpool(self._admit, Headers(scope=scope))
        if isinstance(found, ApiError):
            await found.response()(scope, receive, send)
            return
        scope.setdefault("state", {}).update(owner=found.owner, limits=found.limits)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(found.headers)
            await send(message)

        await self.app(scope, receive, send_with_limits if found.headers else send)

    def _admit(self, headers: Headers) -> _Admitted | ApiError:
        found = self._find(headers)
        limit = None if isinstance(found, ApiError) else found.limits.max_requests_per_minute
        if isinstance(found, ApiError) or limit is None:
            return found
        with self._database.begin() as session:
            minute = count_request(session, found.owner, limit)
        shown = _rate_headers(limit, minute)
        if minute.is_over:
            return _too_many(limit, minute, shown)
        return replace(found, headers=shown)

    def _find(self, headers: Headers) -> _Admitted | ApiError:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        with self._database.read() as session:
            tenant = find_tenant(session, key)
            if tenant is None and self._on_loopback:
                tenant = open_tenant(session)
        if tenant is None:
            return _unauthorized("Incorrect API key provided." if key else _NO_KEY)
        refusal = cross_site_refusal(headers) if tenant.key is None else None
        return refusal or _Admitted(tenant.owner, Limits.of(self._settings, tenant.limits))


_NO_KEY = "You did not provide an API key: send it in the header 'Authorization: Bearer KEY'."


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _rate_headers(limit: int, minute: Minute) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(minute.remaining),
        "x-ratelimit-reset-requests": f"{minute.seconds_left}s",
    }


def _too_many(limit: int, minute: Minute, headers: dict[str, str]) -> ApiError:
    seconds = minute.seconds_left
    message = f"Rate limit reached: {limit:,} requests a minute. Please try again in {seconds} s."
    headers = headers | {"retry-after": str(seconds), "x-should-retry": "true"}
    return ApiError(429, message, code="rate_limit_exceeded", type=RATE_LIMIT, headers=headers)
