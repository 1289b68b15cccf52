"""/v1/usage: what the tenant used, what it may use, and what it holds now."""

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.api.deps import ServiceDep
from app.api.schemas import WireObject
from app.db.limits import Limits, enqueued, stored_bytes
from app.db.models import Usage
from app.db.usage import AMOUNTS, date_of, usage_of

router = APIRouter(prefix="/v1/usage")

MAX_DAYS = 366


class UsageDay(WireObject):
    """A day's answered lines of one model. model: null for batches that name several."""

    date: str
    model: str | None
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, row: Usage) -> "UsageDay":
        amounts = {name: getattr(row, name) for name in AMOUNTS}
        return cls(date=date_of(row), model=row.model or None, **amounts)


class UsageLimits(WireObject):
    """null: no limit."""

    max_requests_per_minute: int | None
    max_stored_bytes: int | None
    max_requests_per_batch: int
    max_enqueued_requests: int | None
    max_enqueued_tokens: int | None

    @classmethod
    def of(cls, limits: Limits) -> "UsageLimits":
        return cls(**asdict(limits))


class UsageReport(WireObject):
    """enqueued: of batches that have not ended."""

    object: Literal["usage"] = "usage"
    data: list[UsageDay]
    stored_bytes: int
    enqueued_requests: int
    enqueued_tokens: int
    limits: UsageLimits


@router.get("")
def retrieve_usage(service: ServiceDep, days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 30) -> UsageReport:
    """The last `days` days by UTC, newest first; days on which nothing was answered are left out."""
    with service.database.read() as session:
        waiting = enqueued(session, service.owner)
        return UsageReport(
            data=[UsageDay.of(row) for row in usage_of(session, days, service.owner)],
            stored_bytes=stored_bytes(session, service.owner),
            enqueued_requests=waiting.num_requests,
            enqueued_tokens=waiting.num_tokens,
            limits=UsageLimits.of(service.limits),
        )
