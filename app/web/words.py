"""Numbers, times and statuses as people read them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

STATUS_WORDS = {
    "validating": "Checking",
    "in_progress": "Running",
    "finalizing": "Writing files",
    "completed": "Completed",
    "failed": "Failed",
    "expired": "Expired",
    "cancelling": "Cancelling",
    "cancelled": "Cancelled",
}


def number(value: float) -> str:
    return f"{value:,.0f}"


def short_number(value: float) -> str:
    """1,234 as 1.2k."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if value >= size:
            return f"{value / size:.1f}".removesuffix(".0") + unit
    return f"{value:.0f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def duration(seconds: float) -> str:
    """Two units at most: `2 h 5 min`, `48 s`."""
    rest = round(max(seconds, 0))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def short_duration(seconds: float) -> str:
    """Of a plot's axis: tenths while these matter."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def num_bytes(value: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if value < 1000:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1000
    return f"{value:.1f}".removesuffix(".0") + " GB"


def status(batch: Any) -> str:
    """Of a batch object; a pause is no status of the API, but one to people."""
    is_paused = batch.paused_at is not None and batch.status in ("validating", "in_progress")
    return "Paused" if is_paused else STATUS_WORDS[batch.status]


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "short_number": short_number,
    "percent": percent,
    "duration": duration,
    "short_duration": short_duration,
    "moment": moment,
    "iso": iso,
    "num_bytes": num_bytes,
    "status_words": status,
}
