"""The objects of the wire. Every documented key is always there; what is absent is null."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.db.models import Batch, File, Upload, UploadPart, WebhookEndpoint
from app.db.uploads import UploadStatus
from app.lifecycle import BatchStatus


class WireObject(BaseModel):
    """Base of what is sent: a key with a default is there too."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class ErrorBody(WireObject):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(WireObject):
    """The one shape of a refusal or a failure; built by `ApiError`."""

    error: ErrorBody


class FileObject(WireObject):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"  # deprecated, but clients wait for it
    status_details: None = None

    @classmethod
    def of(cls, row: File) -> "FileObject":
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=row.created_at,
            expires_at=row.expires_at,
            filename=row.filename,
            purpose=row.purpose,
        )


class FileDeleted(WireObject):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class UploadObject(WireObject):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int  # declared
    created_at: int
    filename: str
    purpose: str
    status: UploadStatus
    expires_at: int
    file: FileObject | None

    @classmethod
    def of(cls, row: Upload, file: File | None = None) -> "UploadObject":
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=row.created_at,
            filename=row.filename,
            purpose=row.purpose,
            status=UploadStatus(row.status),
            expires_at=row.expires_at,
            file=None if file is None else FileObject.of(file),
        )


class UploadPartObject(WireObject):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, row: UploadPart) -> "UploadPartObject":
        return cls(id=row.id, created_at=row.created_at, upload_id=row.upload_id)


class BatchError(WireObject):
    code: str
    message: str
    param: str | None
    line: int | None  # physical line of the input, 1-based


class BatchErrors(WireObject):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(WireObject):
    total: int
    completed: int
    failed: int


class InputTokensDetails(WireObject):
    cached_tokens: int


class OutputTokensDetails(WireObject):
    reasoning_tokens: int = 0


class BatchUsage(WireObject):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchProgress(WireObject):
    """How far a batch is, a second or two ago. Only a single batch is retrieved with it, and before its end.

    lines_read: of the input: by the validation, then again by the worker, which plans when it has all.
    lines_running: held in KV memory right now. eta_seconds: null while there is nothing to tell it from.
    queue_position: 0 while a worker has the batch; else 1 for the next one. null before it, and while paused.
    waiting_for: why no worker has it, where that is more than its turn.
    """

    lines_read: int
    prompt_tokens_done: int
    output_tokens_done: int
    lines_running: int
    eta_seconds: int | None
    queue_position: int | None
    waiting_for: str | None


class BatchObject(WireObject):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None
    priority: int  # ours, as is all that follows
    validation: Literal["strict", "skip"]
    paused_at: int | None
    progress: BatchProgress | None

    @classmethod
    def of(cls, row: Batch, progress: BatchProgress | None = None) -> "BatchObject":
        other = {"metadata", "errors", "progress"}
        same_name = cls.model_fields.keys() & set(Batch.__table__.columns.keys()) - other
        return cls(
            **{name: getattr(row, name) for name in same_name},
            errors=None if row.errors is None else BatchErrors.model_validate({"data": row.errors}),
            request_counts=RequestCounts(total=row.total, completed=row.completed, failed=row.failed),
            usage=_usage(row),
            metadata=row.metadata_,
            progress=progress,
        )


class BatchDeleted(WireObject):
    id: str
    object: Literal["batch"] = "batch"
    deleted: Literal[True] = True


class WebhookEndpointObject(WireObject):
    """`disabled_at` is ours: nothing is sent since then, until the endpoint is updated."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int
    signing_secret_hint: str
    disabled_at: int | None

    @classmethod
    def of(cls, row: WebhookEndpoint) -> "WebhookEndpointObject":
        return cls(**_endpoint_fields(row))


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """Only the making of an endpoint and the rotation of its secret tell the secret."""

    signing_secret: str

    @classmethod
    def of(cls, row: WebhookEndpoint) -> "WebhookEndpointWithSecret":
        return cls(**_endpoint_fields(row), signing_secret=row.secret)


class WebhookEndpointDeleted(WireObject):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTestResult(WireObject):
    """An answer came, whichever: `status_code` is its."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class WebhookEventTypeList(WireObject):
    object: Literal["list"] = "list"
    data: list[str]


class ModelObject(WireObject):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"
    alias_of: str | None = None  # ours: the model that answers under this name


class ModelList(WireObject):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class FileList(WireObject):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[File], has_more: bool) -> "FileList":
        first_id, last_id = _ends(rows)
        data = [FileObject.of(row) for row in rows]
        return cls(data=data, first_id=first_id, last_id=last_id, has_more=has_more)


class BatchList(WireObject):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[Batch], has_more: bool) -> "BatchList":
        first_id, last_id = _ends(rows)
        data = [BatchObject.of(row) for row in rows]
        return cls(data=data, first_id=first_id, last_id=last_id, has_more=has_more)


class WebhookEndpointList(WireObject):
    object: Literal["list"] = "list"
    data: list[WebhookEndpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[WebhookEndpoint], has_more: bool) -> "WebhookEndpointList":
        first_id, last_id = _ends(rows)
        data = [WebhookEndpointObject.of(row) for row in rows]
        return cls(data=data, first_id=first_id, last_id=last_id, has_more=has_more)


def _endpoint_fields(row: WebhookEndpoint) -> dict[str, Any]:
    names = ("id", "name", "url", "event_types", "created_at", "updated_at", "disabled_at")
    return {name: getattr(row, name) for name in names} | {
        "signing_secret_hint": f"whsec_...{row.secret[-4:]}"
    }


def _usage(row: Batch) -> BatchUsage | None:
    """None until the input is validated: a batch that fails there has used nothing."""
    if row.total == 0:
        return None
    return BatchUsage(
        input_tokens=row.input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=row.cached_tokens),
        output_tokens=row.output_tokens,
        total_tokens=row.input_tokens + row.output_tokens,
    )


def _ends(
    rows: Sequence[File] | Sequence[Batch] | Sequence[WebhookEndpoint],
) -> tuple[str | None, str | None]:
    return (rows[0].id, rows[-1].id) if rows else (None, None)
