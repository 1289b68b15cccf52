"""The commands that talk to a running service, convert tables or look at this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.flags import (
    CacheDir,
    DatabaseUrl,
    DataDir,
    Device,
    Host,
    KvMemory,
    Model,
    OpsHost,
    OpsPort,
    Port,
    option,
    start,
)

EXIT_BROKEN = 1

Url = Annotated[
    str,
    typer.Option(envvar="BATCHLLM_URL", help="Where the service answers."),
]
Key = Annotated[
    str | None,
    typer.Option(envvar="BATCHLLM_API_KEY", help="API key, where the service has keys.", show_default=False),
]
AsJson = Annotated[bool, option("Print one JSON object, and nothing else, on standard output.", "--json")]
Watch = Annotated[bool, option("Show its progress until it has ended.", "--watch")]
BatchId = Annotated[str, typer.Argument(help="As `submit` and `list` show it.", show_default=False)]
IdColumn = Annotated[str | None, option("Column of the custom_ids; row-1, row-2, ... by default.")]

LOCAL_URL = "http://127.0.0.1:8000"


def register(app: typer.Typer) -> None:
    for function, name in (
        (submit, "submit"),
        (list_batches, "list"),
        (status, "status"),
        (results, "results"),
        (cancel, "cancel"),
        (pause, "pause"),
        (resume, "resume"),
        (retry, "retry"),
        (convert, "convert"),
        (join, "join"),
        (doctor, "doctor"),
    ):
        app.command(name)(function)


def submit(
    input: Annotated[Path, typer.Argument(help="Batch file, JSONL.", show_default=False)],
    watch: Watch = False,
    window: Annotated[str, typer.Option(help="How long it may take, such as 90m, 12h or 7d.")] = "24h",
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    metadata: Annotated[list[str] | None, option("NAME=VALUE, to be found again; may be repeated.")] = None,
    url: Url = LOCAL_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a batch file and start it; prints the batch's id."""
    from app.client.jobs import service, submit

    pairs = dict(_pair(text) for text in metadata or [])
    with service("submit", url, key) as remote:
        code = submit(
            remote, input, window=window, priority=priority, metadata=pairs, watched=watch, as_json=as_json
        )
    raise typer.Exit(code)


def list_batches(
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    status: Annotated[str | None, option("Only those in this status, such as in_progress.")] = None,
    url: Url = LOCAL_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Print the newest batches."""
    from app.client.jobs import print_json, service, show_list

    with service("list", url, key) as remote:
        batches = list(remote.batches(limit, status))
    if as_json:
        print_json({"data": batches})
    else:
        show_list(batches)


def status(
    batch_id: BatchId, watch: Watch = False, url: Url = LOCAL_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Tell how a batch stands."""
    from app.client.jobs import follow, print_json, service, show_status

    with service("status", url, key) as remote:
        batch = remote.batch(batch_id)
        if watch:
            raise typer.Exit(follow(remote, batch, watched=True, as_json=as_json))
    if as_json:
        print_json(batch)
    else:
        show_status(batch)


def results(
    batch_id: BatchId,
    output: Annotated[Path | None, option("Where answers go; standard output.", "--output", "-o")] = None,
    errors: Annotated[Path | None, option("Where failed lines go; OUTPUT.errors.jsonl by default.")] = None,
    partial: Annotated[bool, option("Take what there is of a batch that still runs.", "--partial")] = False,
    url: Url = LOCAL_URL,
    key: Key = None,
) -> None:
    """Fetch the answers of a batch, and its failed lines."""
    from app.client.jobs import results, service

    if errors is None and output is not None:
        errors = output.parent / f"{output.stem}.errors.jsonl"
    with service("results", url, key) as remote:
        code = results(remote, batch_id, output, errors, partial)
    raise typer.Exit(code)


def cancel(batch_id: BatchId, url: Url = LOCAL_URL, key: Key = None, as_json: AsJson = False) -> None:
    """End a batch early; what is finished is kept."""
    _act("cancel", batch_id, url, key, as_json)


def pause(batch_id: BatchId, url: Url = LOCAL_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Let a batch rest; what is finished is kept."""
    _act("pause", batch_id, url, key, as_json)


def resume(batch_id: BatchId, url: Url = LOCAL_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Let a paused batch run again."""
    _act("resume", batch_id, url, key, as_json)


def retry(
    batch_id: BatchId, watch: Watch = False, url: Url = LOCAL_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Start a new batch of the lines that failed or did not run; prints its id."""
    from app.client.jobs import follow, service

    with service("retry", url, key) as remote:
        batch = remote.post(f"/v1/batches/{batch_id}/retry")
        code = follow(remote, batch, watched=watch, as_json=as_json)
    raise typer.Exit(code)


def convert(
    table: Annotated[
        Path, typer.Argument(help=".csv, .tsv, .parquet or .jsonl, a row a request.", show_default=False)
    ],
    output: Annotated[Path, option("Where the batch file goes.", "--output", "-o")],
    template: Annotated[str | None, option("The prompt, such as 'Sum up: {{ text }}'.")] = None,
    template_file: Annotated[Path | None, option("A file that holds the prompt's template.")] = None,
    model: Annotated[str | None, option("The name that requests ask for; the default model's.")] = None,
    system: Annotated[str | None, option("A system prompt for all.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most output tokens.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 for the likeliest answer.", show_default=False)
    ] = None,
    schema: Annotated[Path | None, option("A file with a JSON schema for the answers.")] = None,
    id_column: IdColumn = None,
) -> None:
    """Make a batch file of a table: columns fill the template's {{ names }}, or {{ row['a name'] }}."""
    from app.client.converting import make_batch_file
    from app.settings import load_settings

    count = make_batch_file(
        table,
        output,
        template=template,
        template_file=template_file,
        schema_file=schema,
        model=model or load_settings().served_model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        id_column=id_column,
    )
    typer.echo(f"{count} requests in {output}.", err=True)


def join(
    table: Annotated[Path, typer.Argument(help="The table that was converted.", show_default=False)],
    results: Annotated[
        list[Path], typer.Argument(help="Files of answers, and of failed lines.", show_default=False)
    ],
    output: Annotated[Path, option(".csv, .tsv, .parquet or .jsonl.", "--output", "-o")],
    id_column: IdColumn = None,
) -> None:
    """Put the answers beside the rows they belong to: answer, finish_reason, error."""
    from app.client.converting import join_table

    total, answered = join_table(table, results, output, id_column)
    typer.echo(f"{answered} of {total} rows have an answer: {output}.", err=True)


def doctor(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    ops_host: OpsHost = None,
    ops_port: OpsPort = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    model: Model = None,
    kv_memory: KvMemory = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Look whether the service would run here, and say what to do where it would not. Changes nothing."""
    with start("doctor", context) as settings:
        from app.client.doctor import examine
        from app.client.findings import show_findings

        is_sound = show_findings(examine(settings), as_json=as_json)
    raise typer.Exit(0 if is_sound else EXIT_BROKEN)


def _act(action: str, batch_id: str, url: str, key: str | None, as_json: bool) -> None:
    from app.client.jobs import print_json, service

    with service(action, url, key) as remote:
        batch: dict[str, Any] = remote.post(f"/v1/batches/{batch_id}/{action}")
    if as_json:
        print_json(batch)
    else:
        typer.echo(f"{batch_id}: {batch['status']}{', paused' if batch['paused_at'] else ''}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint="--metadata")
    return name, value
