"""Tables. Rows never leave `app`; times are unix seconds by the database's clock."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only in a column of type INTEGER.
BigId = BigInteger().with_variant(Integer, "sqlite")


# None is stored as NULL, not as the JSON text "null".
Json = JSON(none_as_null=True)


class Base(DeclarativeBase):
    # Later migrations change constraints by name, and SQLite gives them none of its own.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )


# Whose everything is while the service has no keys; also what was there before the first key.
DEFAULT_OWNER = "default"


class Owned:
    """What belongs to a tenant. Sessions of `Database.of(owner)` see and make only that owner's rows."""

    owner: Mapped[str] = mapped_column(String(64), default=DEFAULT_OWNER, server_default=DEFAULT_OWNER)


class Listed(Owned):
    """What lists show, unless it is of a direct request (app/db/direct.py): tenants never see that."""

    is_direct: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())


class ApiKey(Base):
    """A tenant's right to use the API. `id` is the public part of the key's text; the rest is kept hashed."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class TenantLimits(Base):
    """What one tenant may use, by the settings' names; None: what the settings say."""

    __tablename__ = "limits"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    max_requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_requests_per_batch: Mapped[int | None] = mapped_column(BigInteger)
    max_enqueued_requests: Mapped[int | None] = mapped_column(BigInteger)
    max_enqueued_tokens: Mapped[int | None] = mapped_column(BigInteger)


class RequestWindow(Base):
    """How many requests of the API a tenant sent in the last minute in which it sent one."""

    __tablename__ = "request_windows"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger)  # since 1970
    num_requests: Mapped[int] = mapped_column(BigInteger)


class Usage(Owned, Base):
    """What a tenant's lines took on one day. It outlives the batches."""

    __tablename__ = "usage"

    day: Mapped[int] = mapped_column(Integer)  # since 1970, by UTC
    model: Mapped[str] = mapped_column(Text)  # as the batch names it; empty: batches that name several
    requests: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (PrimaryKeyConstraint("owner", "day", "model"),)


class File(Listed, Base):
    """A stored blob: an upload, or a batch's output or error file."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    storage_key: Mapped[str] = mapped_column(String(128), unique=True)

    __table_args__ = (Index("ix_files_owner_created_at_id", "owner", "created_at", "id"),)

    def is_there_at(self, moment: int) -> bool:
        """Whether the file can still be used at `moment`, in unix seconds."""
        return self.expires_at is None or self.expires_at > moment


class Upload(Owned, Base):
    """A file that is to come in parts; with `file_id` once it is complete."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)  # declared: what the parts must add up to
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    file_expires_seconds: Mapped[int | None]  # after the file's creation; None: the service's default
    file_id: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (Index("ix_uploads_status_expires_at", "status", "expires_at"),)


class UploadPart(Base):
    """A stored blob that waits for its upload to be completed."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(String(128), unique=True)


class IdempotencyKey(Owned, Base):
    """A key of a client's, and the object that the request under it made. None: it is being made."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255))
    request_digest: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str | None] = mapped_column(String(64))
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)

    __table_args__ = (PrimaryKeyConstraint("owner", "key"),)  # a tenant's keys are its own


class Batch(Listed, Base):
    """A job. `epoch` grows with every claim: whoever writes must hold the current one."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file_id: Mapped[str] = mapped_column(String(64), index=True)
    completion_window: Mapped[str] = mapped_column(String(16))
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata", Json)
    model: Mapped[str | None] = mapped_column(Text)  # None: not known yet, or mixed
    models: Mapped[list[str] | None] = mapped_column(Json)  # all that its requests name; None: not known yet
    priority: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # higher goes first
    validation: Mapped[str] = mapped_column(String(16), default="strict", server_default="strict")
    paused_at: Mapped[int | None] = mapped_column(BigInteger)  # no worker takes it while this is set
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)  # told by its worker, a second old
    status: Mapped[str] = mapped_column(String(16), index=True)
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)  # validation errors
    output_file_id: Mapped[str | None] = mapped_column(String(64))
    error_file_id: Mapped[str | None] = mapped_column(String(64))
    output_expires_seconds: Mapped[int | None]  # after the files' creation; None: the service's default

    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    in_progress_at: Mapped[int | None] = mapped_column(BigInteger)
    finalizing_at: Mapped[int | None] = mapped_column(BigInteger)
    completed_at: Mapped[int | None] = mapped_column(BigInteger)
    failed_at: Mapped[int | None] = mapped_column(BigInteger)
    expired_at: Mapped[int | None] = mapped_column(BigInteger)
    cancelling_at: Mapped[int | None] = mapped_column(BigInteger)
    cancelled_at: Mapped[int | None] = mapped_column(BigInteger)

    total: Mapped[int] = mapped_column(Integer, default=0)
    enqueued_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # an estimate
    completed: Mapped[int] = mapped_column(Integer, default=0)
    failed: Mapped[int] = mapped_column(Integer, default=0)
    input_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    cached_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    output_tokens: Mapped[int] = mapped_column(BigInteger, default=0)

    epoch: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[int | None] = mapped_column(BigInteger)
    deaths: Mapped[int] = mapped_column(Integer, server_default="0")  # of workers that held the batch

    __table_args__ = (
        Index("ix_batches_owner_created_at_id", "owner", "created_at", "id"),
        # Looked at ten times a second, and all but empty.
        Index(
            "ix_batches_is_direct",
            "is_direct",
            sqlite_where=text("is_direct"),
            postgresql_where=text("is_direct"),
        ),
    )


class RequestLine(Base):
    """One line of a batch's input: where it lies in the blob, never its body."""

    __tablename__ = "request_lines"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    line: Mapped[int] = mapped_column(Integer)  # physical line, 1-based
    custom_id: Mapped[str] = mapped_column(Text)
    offset: Mapped[int] = mapped_column(BigInteger)
    length: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer, default=0)  # recorded before the line runs

    __table_args__ = (Index("ix_request_lines_batch_id_id", "batch_id", "id"),)


class LineResult(Base):
    """The final answer to one line: a line of the output file (`ok`) or of the error file."""

    __tablename__ = "line_results"

    request_line_id: Mapped[int] = mapped_column(
        ForeignKey("request_lines.id", ondelete="CASCADE"), primary_key=True
    )
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    ok: Mapped[bool] = mapped_column(Boolean)
    attempt: Mapped[int] = mapped_column(Integer)  # which attempt at the line this came from
    payload: Mapped[bytes] = mapped_column(LargeBinary)  # the JSON line, without its newline

    __table_args__ = (Index("ix_line_results_batch_id", "batch_id", "ok", "request_line_id"),)


class BatchTelemetry(Base):
    """How a batch ran, as its workers tell it (app/batch_telemetry.py). `outline`: what was to be shared."""

    __tablename__ = "batch_telemetry"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    outline: Mapped[dict[str, Any] | None] = mapped_column(Json)
    series: Mapped[dict[str, Any] | None] = mapped_column(Json)


class Worker(Base):
    """A worker that is ready to run batches. `seen_at`: its last sign of life."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    models: Mapped[list[str]] = mapped_column(Json)  # names that it serves
    seen_at: Mapped[int] = mapped_column(BigInteger)
    figures: Mapped[dict[str, Any] | None] = mapped_column(Json)  # app/metric_names.py


class WebhookEndpoint(Owned, Base):
    """Where a tenant wants to hear of its batches. Secrets are kept as they are: signing needs them."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[str]] = mapped_column(Json)
    secret: Mapped[str] = mapped_column(String(64))
    old_secret: Mapped[str | None] = mapped_column(String(64))  # signs as well, until the time below
    old_secret_expires_at: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    num_given_up: Mapped[int] = mapped_column(Integer, default=0)  # deliveries, since the last that arrived
    disabled_at: Mapped[int | None] = mapped_column(BigInteger)  # nothing is sent while this is set

    __table_args__ = (Index("ix_webhook_endpoints_owner_created_at_id", "owner", "created_at", "id"),)


class WebhookDelivery(Base):
    """An event on its way to one endpoint. `next_attempt_at` is None once it has arrived or is given up."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    endpoint_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True
    )
    event_id: Mapped[str] = mapped_column(String(64))  # the same at every attempt and every endpoint
    event_type: Mapped[str] = mapped_column(String(32))
    batch_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger, index=True)
    num_attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    delivered_at: Mapped[int | None] = mapped_column(BigInteger)
    last_answer: Mapped[str | None] = mapped_column(Text)  # a status code, or why there was none
