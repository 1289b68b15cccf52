"""`batchllm usage`: what tenants used."""

import orjson
import typer

from app.db.usage import AMOUNTS, date_of, usage_of
from app.settings import Settings
from app.tenants.keys import open_database


def show(settings: Settings, name: str | None, days: int, *, as_json: bool) -> None:
    """Print a row a day, tenant and model, newest first; of the tenant `name` or of all."""
    with open_database(settings) as database, database.read() as session:
        rows = [
            {"date": date_of(row), "tenant": row.owner, "model": row.model or None}
            | {amount: getattr(row, amount) for amount in AMOUNTS}
            for row in usage_of(session, days, name)
        ]
    if as_json:
        typer.echo(orjson.dumps({"data": rows}).decode())
        return
    for row in rows:
        counts = "  ".join(f"{row[amount]:,} {amount.replace('_', ' ')}" for amount in AMOUNTS)
        typer.echo(f"{row['date']}  {row['tenant']}  {row['model'] or '(several models)'}  {counts}")
