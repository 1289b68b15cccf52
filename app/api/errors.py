"""The one shape of every refusal: `{"error": {"message", "type", "param", "code"}}`."""

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.storage import StorageAway

log = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
INSUFFICIENT_QUOTA = "insufficient_quota"
SERVER_ERROR = "server_error"

# The SDK repeats 409s and 5xx by itself unless it is told that repeating is of no use.
DO_NOT_RETRY = {"x-should-retry": "false"}

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class ApiError(Exception):
    """A refusal that the client sees as it stands."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str = INVALID_REQUEST,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = type
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        body = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return JSONResponse({"error": body}, self.status, headers=self.headers)


def invalid_value(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def unsupported_value(param: str, value: object, supported: Iterable[str]) -> ApiError:
    """A value outside a closed list; the message names the list."""
    choices = ", ".join(f"'{choice}'" for choice in supported)
    return invalid_value(param, f"Invalid value: '{value}'. Supported values are: {choices}.")


def missing_parameter(param: str) -> ApiError:
    message = f"Missing required parameter: '{param}'."
    return ApiError(400, message, param=param, code="missing_required_parameter")


def unknown_parameter(param: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")


def not_found(message: str, *, param: str | None = None) -> ApiError:
    return ApiError(404, message, param=param)


def conflict(message: str, *, code: str | None = None) -> ApiError:
    """A 409 that stays one however often it is repeated."""
    return ApiError(409, message, code=code, headers=DO_NOT_RETRY)


def too_large(message: str, *, param: str | None = None) -> ApiError:
    return ApiError(413, message, param=param, headers=DO_NOT_RETRY)


def quota_exceeded(message: str) -> ApiError:
    """A 429 that waiting does not mend."""
    return ApiError(429, message, code=INSUFFICIENT_QUOTA, type=INSUFFICIENT_QUOTA, headers=DO_NOT_RETRY)


def unavailable(message: str) -> ApiError:
    """A 503 that is worth repeating."""
    return ApiError(503, message, type=SERVER_ERROR)


def from_validation(details: Sequence[ErrorDetails] | Sequence[Any], *, in_query: bool = False) -> ApiError:
    """The first of pydantic's complaints, in the words of the API.

    Everything wrong with a query parameter is an `invalid_value`: all of them are text to begin with.
    """
    detail = details[0]
    path = _dotted(detail["loc"])
    kind = detail["type"]
    if kind == "missing":
        return missing_parameter(path)
    if kind == "extra_forbidden":
        return unknown_parameter(path)
    if kind == "literal_error":
        choices = detail["ctx"]["expected"].replace(" or ", ", ")
        return invalid_value(path, f"Invalid value: '{detail['input']}'. Supported values are: {choices}.")
    if kind.endswith("_type") and not in_query:
        got = _json_kind(detail["input"])
        message = f"Invalid type for '{path}': expected {_expected(kind)}, but got {got} instead."
        return ApiError(400, message, param=path, code="invalid_type")
    return invalid_value(path, f"Invalid '{path}': {detail['msg']}.")


def install_error_handlers(app: FastAPI) -> None:
    """Put every error that a route or the router raises into the envelope."""

    def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _from_http_exception(app, request, error).response()

    def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        details = [{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]
        return from_validation(details, in_query=True).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)


def from_unexpected(error: Exception, method: str) -> ApiError:
    """What the client is told of an error that nobody foresaw; the log has the rest."""
    if is_database_down(error):
        log.warning("the database cannot be used: %s", error)
        return unavailable("The database cannot be used at the moment. Please try again later.")
    if isinstance(error, StorageAway):
        log.warning("the storage cannot be used: %s", error)
        return unavailable("The storage cannot be used at the moment. Please try again later.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("storage is full: %s", error)
        message = "The server has no storage space left."
        return ApiError(507, message, type=SERVER_ERROR, headers=DO_NOT_RETRY)
    log.error("unexpected error", exc_info=error)
    # A write may have happened before the error; only reading is safe to repeat.
    headers = None if method in ("GET", "HEAD") else DO_NOT_RETRY
    return ApiError(500, "The server had an error.", type=SERVER_ERROR, headers=headers)


def is_database_down(error: Exception) -> bool:
    """True for trouble with the database itself, as against a wrong statement."""
    if isinstance(error, DBAPIError) and (error.connection_invalidated or _has_no_table(error)):
        return True
    return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError)


def _has_no_table(error: DBAPIError) -> bool:
    """Postgres alone: on SQLite this is an `OperationalError`. The keeper has not migrated yet."""
    return getattr(error.orig, "sqlstate", None) in ("42P01", "42703")  # undefined table, undefined column


def _from_http_exception(app: FastAPI, request: Request, error: HTTPException) -> ApiError:
    path = request.url.path
    if error.status_code == 404:
        return not_found(f"Unknown request URL: {request.method} {path}.")
    if error.status_code == 405:
        allowed = ", ".join(_allowed_methods(app, request))
        message = f"Method {request.method} is not allowed on {path}. Allowed: {allowed}."
        return ApiError(405, message, headers={"allow": allowed})
    return ApiError(error.status_code, str(error.detail), headers=error.headers)


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """All methods of the path: the router's own 405 names only those of the first route that it met."""

    def served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)

    return [method for method in _METHODS if served(method)]


def _dotted(location: Iterable[str | int]) -> str:
    dotted = ""
    for step in location:
        dotted += f"[{step}]" if isinstance(step, int) else f".{step}" if dotted else step
    return dotted


def _expected(kind: str) -> str:
    names = {
        "string_type": "a string",
        "int_type": "an integer",
        "bool_type": "a boolean",
        "float_type": "a number",
        "list_type": "an array",
    }
    return names.get(kind, "an object")


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {
        str: "a string",
        int: "an integer",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]
