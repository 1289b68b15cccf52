"""`batchllm limits`: what one tenant may use."""

from collections.abc import Collection

import typer

from app.db.limits import LIMIT_NAMES, clear_limits, list_limits
from app.db.limits import set_limits as set_in_database
from app.settings import Settings, StartupError
from app.tenants.keys import check_name, open_database


def set_limits(settings: Settings, name: str, given: Collection[str]) -> None:
    """Give the tenant `name` the limits that are `given`, whose values are in `settings`. StartupError."""
    check_name(name)
    changes = {limit: getattr(settings, limit) for limit in LIMIT_NAMES if limit in given}
    if not changes:
        flags = ", ".join(f"--{limit.replace('_', '-')}" for limit in LIMIT_NAMES)
        raise StartupError(f"Nothing to set: give at least one of {flags}.")
    with open_database(settings) as database, database.begin() as session:
        set_in_database(session, name, changes)


def show(settings: Settings) -> None:
    """Print the limits of all tenants, then of those that have their own."""
    typer.echo(f"(all)  {_line(settings)}")
    with open_database(settings) as database, database.read() as session:
        for row in list_limits(session):
            typer.echo(f"{row.owner}  {_line(row)}")


def clear(settings: Settings, name: str) -> None:
    """Take the tenant's own limits away. StartupError."""
    with open_database(settings) as database, database.begin() as session:
        is_cleared = clear_limits(session, name)
    if not is_cleared:
        raise StartupError(f"The tenant '{name}' has no limits of its own: see 'batchllm limits list'.")


def _line(limits: object) -> str:
    values = {name: getattr(limits, name) for name in LIMIT_NAMES}
    return "  ".join(f"{name}={value}" for name, value in values.items() if value is not None) or "no limits"
