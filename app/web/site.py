"""The dashboard beside the API: paths of its own, and headers that keep its pages to themselves."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import Service
from app.api.errors import ApiError, from_unexpected, not_found
from app.web.pages import router
from app.web.session import Sessions
from app.web.visitor import LoginNeeded, error_page

STATIC = Path(__file__).parent / "static"

_FIRST_FOLDERS = frozenset({"", "jobs", "new", "login", "logout", "static"})
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # Not no-referrer: the forms' Origin would then be null.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Dashboard:
    """Sends requests for pages to the site, all others on to the API."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self.app = app
        self._site = _site(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].split("/")[1] not in _FIRST_FOLDERS:
            await self.app(scope, receive, send)
            return
        is_static = scope["path"].startswith("/static/")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["cache-control"] = "max-age=3600" if is_static else "no-store"
            await send(message)

        await self._site(scope, receive, send_guarded)


class UnexpectedErrors:
    """The site's last net: an error that nobody foresaw is a page too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except Exception as error:
            if started or isinstance(error, ClientDisconnect):
                raise
            await error_page(from_unexpected(error, scope["method"]))(scope, receive, send)


def _site(service: Service) -> FastAPI:
    site = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    site.state.service = service
    site.state.sessions = Sessions(service.settings.data_dir)
    site.include_router(router)
    site.add_middleware(UnexpectedErrors)
    site.mount("/static", StaticFiles(directory=STATIC))

    def on_refusal(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_page(error)

    def on_missing(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return error_page(not_found("There is no such page."))
        return error_page(ApiError(error.status_code, str(error.detail), headers=error.headers))

    def on_invalid(_: Request, error: Exception) -> Response:
        return error_page(not_found("There is no such page."))

    def on_stranger(request: Request, _: Exception) -> Response:
        if "hx-request" in request.headers:  # a page whose session has ended while it was open
            return Response(status_code=401, headers={"HX-Redirect": "/login"})
        return RedirectResponse("/login", 303)

    site.add_exception_handler(ApiError, on_refusal)
    site.add_exception_handler(HTTPException, on_missing)
    site.add_exception_handler(RequestValidationError, on_invalid)
    site.add_exception_handler(LoginNeeded, on_stranger)
    return site
