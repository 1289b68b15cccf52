"""The life of a batch: its statuses, which may follow which, and the timestamp each one sets."""

from enum import StrEnum


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Validation(StrEnum):
    """What an invalid line means."""

    STRICT = "strict"  # the batch fails before anything runs
    SKIP = "skip"  # the line becomes an error line, the others run


_S = BatchStatus

TERMINAL = frozenset({_S.FAILED, _S.COMPLETED, _S.EXPIRED, _S.CANCELLED})

TRANSITIONS: dict[BatchStatus, frozenset[BatchStatus]] = {
    _S.VALIDATING: frozenset({_S.FAILED, _S.IN_PROGRESS, _S.CANCELLING, _S.EXPIRED}),
    _S.IN_PROGRESS: frozenset({_S.FINALIZING, _S.CANCELLING, _S.EXPIRED, _S.FAILED}),
    _S.FINALIZING: frozenset({_S.COMPLETED, _S.CANCELLING, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    **{status: frozenset() for status in TERMINAL},
}

CANCELLABLE = frozenset(old for old, new in TRANSITIONS.items() if _S.CANCELLING in new)


def timestamp_column(status: BatchStatus) -> str:
    """Name of the column that entering `status` sets, once."""
    return "created_at" if status is _S.VALIDATING else f"{status}_at"
