"""The commands of whoever runs the service, on its data: tenants' keys, limits and usage; backups."""

from pathlib import Path
from typing import Annotated

import typer

from app.flags import DatabaseUrl, DataDir, StorageUrl, option, start

keys = typer.Typer(help="Create, list and revoke the keys of those who may use the service.")
limits = typer.Typer(help="Say what one tenant may use; for all tenants the settings of these names do.")

Name = Annotated[str, typer.Argument(help="As keys have it; `default` on a service without keys.")]


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys", no_args_is_help=True)
    app.add_typer(limits, name="limits", no_args_is_help=True)
    app.command()(usage)
    app.command()(backup)


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Whose it is: keys of one name see the same files and batches.")
    ],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it, this once."""
    with start("keys create", context) as settings:
        from app.tenants.keys import create

        create(settings, name)


@keys.command("list")
def list_keys(context: typer.Context, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Print all keys by their ids."""
    with start("keys list", context) as settings:
        from app.tenants.keys import show

        show(settings)


@keys.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="As `keys list` shows it.", show_default=False)],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """End the use of a key, from the next request on."""
    with start("keys revoke", context) as settings:
        from app.tenants.keys import revoke

        revoke(settings, key_id)


@limits.command("set")
def set_limits(
    context: typer.Context,
    name: Name,
    max_requests_per_minute: Annotated[int | None, option("Requests to the API in a minute.")] = None,
    max_stored_bytes: Annotated[str | None, option("Bytes of all its files, such as 50GB.")] = None,
    max_requests_per_batch: Annotated[int | None, option("Lines of one batch.")] = None,
    max_enqueued_requests: Annotated[int | None, option("Lines of batches that have not ended.")] = None,
    max_enqueued_tokens: Annotated[
        int | None, option("Tokens that batches that have not ended may take.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set limits of one tenant, from its next request on; those not given stay as they are."""
    given = {name for name, value in context.params.items() if value is not None}
    with start("limits set", context) as settings:
        from app.tenants.limits import set_limits

        set_limits(settings, name, given)


@limits.command("list")
def list_limits(context: typer.Context, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Print the limits that the settings set for all, and those of tenants that have their own."""
    with start("limits list", context) as settings:
        from app.tenants.limits import show

        show(settings)


@limits.command("clear")
def clear_limits(
    context: typer.Context, name: Name, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Let the settings hold for a tenant again."""
    with start("limits clear", context) as settings:
        from app.tenants.limits import clear

        clear(settings, name)


def usage(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Of this tenant only.", show_default=False)] = None,
    days: Annotated[int, typer.Option(min=1, help="How many days back, today among them.")] = 30,
    as_json: Annotated[bool, option("Print one JSON object on standard output.", "--json")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Print what tenants used, by day and model, batches that were deleted since included."""
    with start("usage", context) as settings:
        from app.tenants.usage import show

        show(settings, name, days, as_json=as_json)


def backup(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(help="A directory for this backup alone.", show_default=False)],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    storage_url: StorageUrl = None,
) -> None:
    """Copy the files and the SQLite database of a service, which may run meanwhile."""
    with start("backup", context) as settings:
        from app.backup import back_up

        num_files = back_up(settings, target)
    typer.echo(f"{target} holds {num_files} files; docs/guide/backup.md says how to restore it.", err=True)
