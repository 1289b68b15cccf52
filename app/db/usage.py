"""What tenants used, by day and model: added up with the results, and kept when their batches are gone."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import BigInteger, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db.models import Batch, Usage
from app.db.session import unix_now
from app.settings import DAY_SECONDS

AMOUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")
_KEY = ("owner", "day", "model")
_EPOCH_DAY = date(1970, 1, 1).toordinal()


def add_usage(session: Session, batch_id: str, **amounts: int) -> None:
    """Add `amounts` (requests and tokens, by the names of the columns) to today's of the batch's owner."""
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    key = (Batch.owner, unix_now() // DAY_SECONDS, func.coalesce(Batch.model, ""))
    values = (literal(amount, BigInteger()) for amount in amounts.values())
    row = select(*key, *values).where(Batch.id == batch_id)
    statement = insert(Usage).from_select([*_KEY, *amounts], row)
    sums = {name: getattr(Usage, name) + statement.excluded[name] for name in amounts}
    session.execute(statement.on_conflict_do_update(index_elements=list(_KEY), set_=sums))


def usage_of(session: Session, days: int, owner: str | None = None) -> Sequence[Usage]:
    """The last `days` days, today among them, newest first; of one tenant or of all."""
    query = select(Usage).where(Usage.day > unix_now() // DAY_SECONDS - days)
    if owner is not None:
        query = query.where(Usage.owner == owner)
    return session.scalars(query.order_by(Usage.day.desc(), Usage.owner, Usage.model)).all()


def date_of(usage: Usage) -> str:
    """Its day, such as 2026-11-25."""
    return date.fromordinal(_EPOCH_DAY + usage.day).isoformat()
