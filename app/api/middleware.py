"""What surrounds every request: its id and the last net for errors; and what guards an open loopback port."""

import ipaddress
import logging
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import ApiError, from_unexpected
from app.metrics import HttpFigures

log = logging.getLogger(__name__)


class RequestEnvelope:
    """Outermost layer: `x-request-id` on every response, and an error envelope for whatever was not caught.

    It also drops slashes at the end of a path, so that `/v1/files/` is `/v1/files` unredirected: clients
    drop the body of a POST that is redirected.
    """

    def __init__(self, app: ASGIApp, http: HttpFigures) -> None:
        self.app = app
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._http.answered(scope["method"], message["status"])
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("%s: the client went away", request_id, extra={"request_id": request_id})
        except Exception as error:
            if started:  # too late for an answer: the server cuts the connection
                raise
            what = (request_id, scope["method"], scope["path"])
            log.info("%s: %s %s failed", *what, extra={"request_id": request_id})
            await from_unexpected(error, scope["method"]).response()(scope, receive, send_with_id)


def is_loopback(host: str) -> bool:
    """True for a name or address that only this machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def cross_site_refusal(headers: Headers) -> ApiError | None:
    """Refuses what a web page elsewhere could make a browser on this machine send.

    A port without keys trusts whoever can reach it, and any page can reach loopback through its visitor: by a
    request across sites (seen by its Origin) or by a DNS name that resolves to 127.0.0.1 (seen by its Host).
    """
    host = headers.get("host")
    if host is not None and not is_loopback(_hostname(f"//{host}")):
        return ApiError(403, f"The host '{host}' is not served here: use localhost.")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return ApiError(403, f"Requests from the origin '{origin}' are not allowed.")
    site = headers.get("sec-fetch-site")
    if site in ("cross-site", "same-site"):  # an image or a link has no Origin
        return ApiError(403, f"Requests from other sites ('{site}') are not allowed.")
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # not a host at all, such as an open bracket
        return ""
