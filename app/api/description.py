"""The description of the API: one shape of error, and links from what makes an object to what uses it."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.api.bodies import REQUEST_BODIES, RequestBody
from app.api.schemas import ErrorEnvelope

_REF = "#/components/schemas/{model}"
_ID = "$response.body#/id"

# For a router: whatever is not the answer is the envelope. It also keeps FastAPI's own 422 out.
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorEnvelope, "description": "A refusal or a failure."}
}

_BATCH_OF_IT = {"endpoint": "/v1/completions", "completion_window": "24h"}

# By the operation that makes an object: the operations on it, and what of the answer they take.
_LINKS: dict[str, dict[str, dict[str, Any]]] = {
    "create_file": {
        "retrieve_file": {"parameters": {"file_id": _ID}},
        "file_content": {"parameters": {"file_id": _ID}},
        "delete_file": {"parameters": {"file_id": _ID}},
        "create_batch": {"requestBody": {"input_file_id": _ID, **_BATCH_OF_IT}},
    },
    "create_upload": {
        "create_part": {"parameters": {"upload_id": _ID}},
        "complete_upload": {"parameters": {"upload_id": _ID}},
        "cancel_upload": {"parameters": {"upload_id": _ID}},
    },
    "create_part": {
        "complete_upload": {
            "parameters": {"upload_id": "$response.body#/upload_id"},
            "requestBody": {"part_ids": [_ID]},
        },
    },
    "complete_upload": {
        "retrieve_file": {"parameters": {"file_id": "$response.body#/file/id"}},
        "create_batch": {"requestBody": {"input_file_id": "$response.body#/file/id", **_BATCH_OF_IT}},
    },
    "create_batch": {
        "retrieve_batch": {"parameters": {"batch_id": _ID}},
        "cancel_batch": {"parameters": {"batch_id": _ID}},
        "pause_batch": {"parameters": {"batch_id": _ID}},
        "resume_batch": {"parameters": {"batch_id": _ID}},
        "retry_batch": {"parameters": {"batch_id": _ID}},
        "stream_results": {"parameters": {"batch_id": _ID}},
        "delete_batch": {"parameters": {"batch_id": _ID}},
    },
    "create_webhook_endpoint": {
        "retrieve_webhook_endpoint": {"parameters": {"webhook_endpoint_id": _ID}},
        "update_webhook_endpoint": {"parameters": {"webhook_endpoint_id": _ID}},
        "rotate_webhook_secret": {"parameters": {"webhook_endpoint_id": _ID}},
        "delete_webhook_endpoint": {"parameters": {"webhook_endpoint_id": _ID}},
    },
}


class DescribedApi(FastAPI):
    """An application whose `/openapi.json` also has the bodies that our routes read themselves, and links."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"] |= _body_schemas()
            for path in document["paths"].values():
                for operation in path.values():
                    _add_links(operation)
        return super().openapi()


def json_schema(model: type[RequestBody]) -> dict[str, Any]:
    """The OpenAPI entry of a body that `json_body` reads."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def form_schema(
    file_field: str, *, text_fields: dict[str, Any], required: Iterable[str], filename: str
) -> dict[str, Any]:
    """The OpenAPI entry of a form that `receive_form` reads."""
    binary = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "required": list(required),
        "properties": {file_field: binary, **text_fields},
        "additionalProperties": False,
    }
    disposition = f'form-data; name="{file_field}"; filename="{filename}"'
    encoding = {"headers": {"Content-Disposition": {"schema": {"type": "string", "example": disposition}}}}
    content = {"multipart/form-data": {"schema": schema, "encoding": {file_field: encoding}}}
    return {"requestBody": {"required": True, "content": content}}


def _body_schemas() -> dict[str, Any]:
    pairs: Any = [(model, "validation") for model in REQUEST_BODIES]
    _, definitions = models_json_schema(pairs, ref_template=_REF)
    return dict(definitions["$defs"])


def _add_links(operation: dict[str, Any]) -> None:
    links = _LINKS.get(operation["operationId"], {})
    if links:
        operation["responses"]["200"]["links"] = {
            target: {"operationId": target, **values} for target, values in links.items()
        }
