"""The lines of output and error files, as they are stored and downloaded. Free of the engine."""

from typing import Any

import orjson

from app.db.ids import new_id


def answered_line(custom_id: str, status_code: int, body: dict[str, Any]) -> bytes:
    """A request that was answered, well or not."""
    response = {"status_code": status_code, "request_id": new_id("req_"), "body": body}
    return _line(custom_id, response, None)


def unanswered_line(custom_id: str, code: str, message: str) -> bytes:
    """A request that never ran."""
    return _line(custom_id, None, {"code": code, "message": message})


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)  # embeddings, with the digits that fp32 has
