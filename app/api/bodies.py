"""What clients send as JSON. Limits that the API words itself are checked by the routes, described here."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.outbound import MAX_URL_CHARS

PURPOSES = ("batch",)
ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
)

MIN_EXPIRY_SECONDS = 3_600
MAX_EXPIRY_SECONDS = 2_592_000

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512

MAX_PRIORITY = 100


class RequestBody(BaseModel):
    """Base of what clients send: JSON's own types and no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ExpiresAfter(RequestBody):
    anchor: Literal["created_at"]
    seconds: int = Field(json_schema_extra={"minimum": MIN_EXPIRY_SECONDS, "maximum": MAX_EXPIRY_SECONDS})


class UploadCreate(RequestBody):
    filename: str = Field(json_schema_extra={"pattern": r"^(upload|.*\.jsonl)$", "maxLength": 255})
    purpose: str = Field(json_schema_extra={"enum": list(PURPOSES)})
    bytes: int = Field(json_schema_extra={"minimum": 1})
    mime_type: str  # any: what a batch file is shows in its content
    expires_after: ExpiresAfter | None = None


class UploadComplete(RequestBody):
    part_ids: list[str]
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class BatchCreate(RequestBody):
    # Any id of a sane shape is taken: a file that is not there fails the batch, not the request.
    input_file_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    endpoint: str = Field(json_schema_extra={"enum": list(ENDPOINTS)})
    completion_window: str = Field(json_schema_extra={"pattern": "^[1-9][0-9]{0,8}[mhd]$"})
    metadata: dict[str, str] | None = Field(
        default=None,
        json_schema_extra={
            "maxProperties": MAX_METADATA_PAIRS,
            "propertyNames": {"maxLength": MAX_METADATA_KEY_CHARS},
            "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE_CHARS},
        },
    )
    output_expires_after: ExpiresAfter | None = None
    # Ours: a higher priority goes first; the batches of one are run by age.
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    # Ours: with "skip" an invalid line becomes an error line and the others run.
    validation: Literal["strict", "skip"] = "strict"


WebhookName = Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,256}$")]
WebhookUrl = Annotated[
    str, StringConstraints(max_length=MAX_URL_CHARS), Field(json_schema_extra={"format": "uri"})
]
WebhookEventType = Literal["batch.cancelled", "batch.completed", "batch.expired", "batch.failed"]
WebhookEventTypes = Annotated[list[WebhookEventType], Field(min_length=1)]


class WebhookCreate(RequestBody):
    name: WebhookName
    url: WebhookUrl
    event_types: WebhookEventTypes


class WebhookUpdate(RequestBody):
    name: WebhookName | None = None
    url: WebhookUrl | None = None
    event_types: WebhookEventTypes | None = None


class WebhookRotate(RequestBody):
    keep_old_secret_active_for_24_hours: bool = False


class WebhookTest(RequestBody):
    event_type: WebhookEventType


REQUEST_BODIES: tuple[type[RequestBody], ...] = (
    UploadCreate,
    UploadComplete,
    BatchCreate,
    WebhookCreate,
    WebhookUpdate,
    WebhookRotate,
    WebhookTest,
)
