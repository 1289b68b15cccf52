"""Why lines failed: their error lines, counted by code, with a few of each to look at."""

from dataclasses import dataclass, field
from itertools import islice

import orjson
from sqlalchemy.orm import Session

from app.db.lines import iter_results

MAX_LINES = 2_000  # read for one page
MAX_SAMPLES = 3
MAX_KINDS = 12
_MESSAGE_CHARS = 240


@dataclass
class Kind:
    """One kind of error; samples: custom id and message of some lines."""

    code: str
    num_lines: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)


def kinds_of_failure(session: Session, batch_id: str) -> list[Kind]:
    """The commonest first, of the first `MAX_LINES` lines that failed."""
    kinds: dict[str, Kind] = {}
    for result in islice(iter_results(session, batch_id, ok=False), MAX_LINES):
        line = orjson.loads(result.payload)
        response = line.get("response") or {}
        error = line.get("error") or (response.get("body") or {}).get("error") or {}
        code = str(error.get("code") or response.get("status_code") or "error")
        kind = kinds.setdefault(code, Kind(code))
        kind.num_lines += 1
        if len(kind.samples) < MAX_SAMPLES:
            kind.samples.append((line["custom_id"][:80], str(error.get("message", ""))[:_MESSAGE_CHARS]))
    return sorted(kinds.values(), key=lambda kind: -kind.num_lines)[:MAX_KINDS]
