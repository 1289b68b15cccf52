"""The objects of the wire. Every documented key is always there; what is absent is null."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.db.models import Batch, File, Upload, UploadPart

Purpose = Literal["batch"]
Anchor = Literal["created_at"]

MAX_PRIORITY = 100


class FileObject(BaseModel):
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


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int  # declared
    created_at: int
    filename: str
    purpose: str
    status: str
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
            status=row.status,
            expires_at=row.expires_at,
            file=None if file is None else FileObject.of(file),
        )


class UploadPartObject(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, row: UploadPart) -> "UploadPartObject":
        return cls(id=row.id, created_at=row.created_at, upload_id=row.upload_id)


class BatchError(BaseModel):
    code: str
    message: str
    param: str | None
    line: int | None  # physical line of the input, 1-based


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchProgress(BaseModel):
    """How far a batch in progress is, a second or two ago. Only a single batch is retrieved with it.

    lines_running: held in KV memory right now. eta_seconds: null while there is nothing to tell it from.
    queue_position: 0 while a worker has the batch; else 1 for the next one. null while it is paused.
    waiting_for: why no worker has it, where that is more than its turn.
    """

    prompt_tokens_done: int
    output_tokens_done: int
    lines_running: int
    eta_seconds: int | None
    queue_position: int | None
    waiting_for: str | None


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
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


class BatchDeleted(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    deleted: Literal[True] = True


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class FileList(BaseModel):
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


class BatchList(BaseModel):
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


class RequestBody(BaseModel):
    """Base of what clients send: JSON's own types and no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ExpiresAfter(RequestBody):
    anchor: Anchor
    seconds: int


class UploadCreate(RequestBody):
    filename: str
    purpose: str
    bytes: int
    mime_type: str  # any: what a batch file is shows in its content
    expires_after: ExpiresAfter | None = None


class UploadComplete(RequestBody):
    part_ids: list[str]
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class BatchCreate(RequestBody):
    # Any id of a sane shape is taken: a file that is not there fails the batch, not the request.
    input_file_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    # Ours: a higher priority goes first; the batches of one are run by age.
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0


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


def _ends(rows: Sequence[File] | Sequence[Batch]) -> tuple[str | None, str | None]:
    return (rows[0].id, rows[-1].id) if rows else (None, None)
