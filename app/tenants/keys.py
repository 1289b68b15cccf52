"""`batchllm keys`: who may use the service."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import typer

from app.db.keys import create_key, list_keys, revoke_key
from app.db.schema import migrate
from app.db.session import Database
from app.settings import Settings, StartupError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def create(settings: Settings, name: str) -> None:
    """Print a new key of the tenant `name`: alone on standard output, to be piped. StartupError."""
    check_name(name)
    with open_database(settings) as database, database.begin() as session:
        key, text = create_key(session, name)
    typer.echo(f"Key {key.id} of {name}; it is shown this once:", err=True)
    typer.echo(text)


def show(settings: Settings) -> None:
    """Print every key's id, tenant and times, oldest first; the keys themselves are not kept."""
    with open_database(settings) as database, database.read() as session:
        for key in list_keys(session):
            ended = "" if key.revoked_at is None else f"  revoked {_date(key.revoked_at)}"
            typer.echo(f"{key.id}  {key.owner}  created {_date(key.created_at)}{ended}")


def revoke(settings: Settings, key_id: str) -> None:
    """End the use of a key, at once. Its tenant's files and batches stay. StartupError."""
    with open_database(settings) as database, database.begin() as session:
        is_revoked = revoke_key(session, key_id)
    if not is_revoked:
        raise StartupError(f"No key in use has the id '{key_id}': see 'batchllm keys list'.")


def check_name(name: str) -> None:
    """Raises StartupError for what cannot name a tenant."""
    if not _NAME.fullmatch(name):
        raise StartupError(f"'{name}' cannot name a tenant: use up to 64 letters, digits, '.', '_' and '-'.")


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The service's database, made where the first key comes before the first start."""
    database = Database(settings.resolved_database_url)
    try:
        migrate(database)
        yield database
    finally:
        database.dispose()


def _date(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
