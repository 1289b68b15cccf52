"""What a page's handler is given: the service as the visitor may use it, and the answer's shape."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.api.deps import Service
from app.api.errors import ApiError, too_large
from app.api.middleware import cross_site_refusal, is_loopback
from app.db.keys import find_tenant_by_id, open_tenant
from app.db.limits import Limits
from app.web import words
from app.web.session import SESSION_SECONDS, Session, Sessions

MAX_FORM_BYTES = 64 << 10

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(words.FILTERS)


class LoginNeeded(Exception):
    """Nobody whom we know: to the login page."""


@dataclass(frozen=True)
class Visitor:
    """`owner` is None on the login page alone; `service` is then nobody's and must not be used."""

    request: Request
    service: Service
    sessions: Sessions
    session: Session
    owner: str | None

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page or a fragment; sets the cookie of a new session."""
        html = _templates.get_template(template).render(
            csrf_token=self.sessions.csrf_token(self.session),
            owner=self.owner,
            has_login=self.session.key_id is not None,
            path=self.request.url.path,
            **values,
        )
        return self.with_cookie(HTMLResponse(html, status))

    def redirect(self, path: str) -> Response:
        """To another page, by GET."""
        return self.with_cookie(RedirectResponse(path, 303))

    def with_cookie(self, response: Response) -> Response:
        if self.session.is_new:
            response.set_cookie(
                cookie_name(self.service),
                self.sessions.cookie(self.session),
                max_age=SESSION_SECONDS,
                httponly=True,
                samesite="strict",
                secure=self.request.url.scheme == "https",
            )
        return response

    async def form(self) -> dict[str, str]:
        """The fields of a small form, its token checked. Raises ApiError 403 or 413."""
        self.check_origin()
        body = bytearray()
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > MAX_FORM_BYTES:
                raise too_large("The form is too large.")
        fields = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        self.check_token(fields.get("csrf_token", ""))
        return fields

    def check_origin(self) -> None:
        """Raises ApiError 403 for what another site's page sends."""
        origin = self.request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != self.request.headers.get("host"):
            raise ApiError(403, "This form was sent from another site.")

    def check_token(self, token: str) -> None:
        if not self.sessions.is_token(self.session, token):
            raise ApiError(403, "This form is out of date: reload the page and send it again.")


def cookie_name(service: Service) -> str:
    """Cookies do not tell ports apart: two services on one machine must not log each other out."""
    return f"batchllm_{service.settings.port}"


def anyone(request: Request) -> Visitor:
    """Whoever asks, logged in or not; on an open service everybody is the default owner. Raises ApiError."""
    service, sessions = request.app.state.service, request.app.state.sessions
    assert isinstance(service, Service)
    assert isinstance(sessions, Sessions)
    session = sessions.read(request.cookies.get(cookie_name(service)))
    with service.database.read() as db:
        tenant = None if session.key_id is None else find_tenant_by_id(db, session.key_id)
        if tenant is None and is_loopback(service.settings.host):
            tenant = open_tenant(db)
    if tenant is None:
        return Visitor(request, service, sessions, session, None)
    refusal = cross_site_refusal(request.headers) if tenant.key is None else None
    if refusal is not None:
        raise refusal
    service = service.of(tenant.owner, Limits.of(service.settings, tenant.limits))
    return Visitor(request, service, sessions, session, tenant.owner)


def _known(visitor: Annotated[Visitor, Depends(anyone)]) -> Visitor:
    if visitor.owner is None:
        raise LoginNeeded
    return visitor


Anyone = Annotated[Visitor, Depends(anyone)]
Known = Annotated[Visitor, Depends(_known)]


def error_page(error: ApiError) -> Response:
    """A refusal, as a person reads it."""
    title = {403: "Not allowed", 404: "Not found"}.get(error.status, "That did not work")
    html = _templates.get_template("error.html").render(
        title=title, message=error.message, status=error.status, owner=None, has_login=False, path=""
    )
    return HTMLResponse(html, error.status, headers=error.headers)
