"""Pages of a list: the cursor is an object's id, so that new rows never shift it."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from app.db.models import Batch, File, WebhookEndpoint

Row = TypeVar("Row", File, Batch, WebhookEndpoint)


class UnknownCursor(Exception):
    """`after` names no object."""


def page_of(
    session: Session,
    query: Select[Row],
    table: type[Row],
    *,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
) -> tuple[Sequence[Row], bool]:
    """Up to `limit` rows of `query` by (created_at, id), from behind the row `after`, and if more follow.

    Raises UnknownCursor if there is no row `after`.
    """
    place = tuple_(table.created_at, table.id)
    if after is not None:
        last = session.get(table, after)
        if last is None:
            raise UnknownCursor(after)
        last_place = tuple_(last.created_at, last.id)
        query = query.where(place > last_place if order == "asc" else place < last_place)
    if order == "asc":
        query = query.order_by(table.created_at, table.id)
    else:
        query = query.order_by(table.created_at.desc(), table.id.desc())
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
