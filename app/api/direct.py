"""POST to an endpoint of batches itself: a line to be answered now, by the workers that run the batches."""

from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api.bodies import ENDPOINTS
from app.api.deps import parse_object, read_body
from app.api.errors import DO_NOT_RETRY, ApiError
from app.batch_input import InputLimits, InputLine, LineError, read_lines
from app.settings import Settings

router = APIRouter()

_NAMES = {
    "/v1/chat/completions": "create_chat_completion",
    "/v1/completions": "create_completion",
    "/v1/responses": "create_response",
    "/v1/embeddings": "create_embedding",
    "/v1/score": "create_score",
    "/v1/rerank": "create_rerank",
}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_BODY = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
_DESCRIPTION = {"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}}


def _route(endpoint: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        """The answer that a line with this body gets in a batch."""
        settings: Settings = request.app.state.service.settings
        desk = request.app.state.desk
        with desk.place():
            body = await read_body(request, settings.max_line_bytes)
            line, content = await run_in_threadpool(_as_line, endpoint, body, settings)
            payload = await desk.answer(request, endpoint, line, content)
        return await run_in_threadpool(_response, payload)

    return answer


for _endpoint in ENDPOINTS:
    router.add_api_route(
        _endpoint,
        _route(_endpoint),
        methods=["POST"],
        name=_NAMES[_endpoint],
        response_class=Response,
        responses={200: {"description": "As in an output file.", "content": _OBJECT}},
        openapi_extra=_DESCRIPTION,
    )


def _as_line(endpoint: str, body: bytes, settings: Settings) -> tuple[InputLine, bytes]:
    """The body as the one line of a batch file, and the file. Raises `ApiError` for what fails a batch."""
    line = {"custom_id": "direct", "method": "POST", "url": endpoint, "body": parse_object(body)}
    content = orjson.dumps(line)
    limits = InputLimits(settings.max_line_bytes, 1, settings.max_embedding_inputs_per_batch)
    (read,) = read_lines(
        BytesIO(content), endpoint=endpoint, served_models=settings.served_models, limits=limits
    )
    if isinstance(read, LineError):
        raise _refusal(read, line["body"])
    return read, content


def _refusal(error: LineError, body: Any) -> ApiError:
    """What is wrong with a line of a batch, in the words of a request of its own."""
    param = None if error.param is None else error.param.removeprefix("body.")
    if error.code == "model_not_found":
        message = f"The model '{body['model']}' does not exist."
        return ApiError(404, message, param=param, code=error.code)
    if error.code == "streaming_unsupported":
        message = "Streaming is not supported here: leave 'stream' out, or set it to false."
        return ApiError(400, message, param=param, code="unsupported_value")
    return ApiError(400, error.message, param=param, code=error.code)


def _response(payload: bytes) -> Response:
    response = orjson.loads(payload)["response"]
    status = response["status_code"]
    # It may be the request itself that ended the worker.
    headers = DO_NOT_RETRY if status >= 500 else None
    return Response(orjson.dumps(response["body"]), status, headers, media_type="application/json")
