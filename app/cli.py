"""The command line. Heavy modules are imported by the command that needs them: --help answers at once."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client.commands import register
from app.flags import (
    AllowRemote,
    CacheDir,
    DatabaseUrl,
    DataDir,
    DefaultMaxTokens,
    Device,
    Dtype,
    Host,
    KvMemory,
    LogFormat,
    MaxBatchTokens,
    Model,
    ModelAliases,
    ModelName,
    OpsHost,
    OpsPort,
    Port,
    Quantize,
    StorageUrl,
    Supervised,
    Threads,
    flags_given,
    option,
    start,
)
from app.lifecycle import Validation
from app.serve import Supervisor, free_port, service_commands
from app.settings import StartupError
from app.tenants.commands import register as register_tenants

app = typer.Typer(
    name="batchllm",
    help="Offline LLM batch service: OpenAI batch files in, results out, shared prefixes computed once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def serve(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    allow_remote: AllowRemote = None,
    ops_host: OpsHost = None,
    ops_port: OpsPort = None,
    log_format: LogFormat = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    storage_url: StorageUrl = None,
    model: Model = None,
    model_name: ModelName = None,
    model_aliases: ModelAliases = None,
    default_max_tokens: DefaultMaxTokens = None,
    kv_memory: KvMemory = None,
    max_batch_tokens: MaxBatchTokens = None,
    threads: Threads = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    device: Device = None,
    cache_dir: CacheDir = None,
) -> None:
    """Run the whole service: api, keeper and worker, restarted when they die."""
    with start("serve", context) as settings:
        port = settings.port or free_port(settings.host)
        ops_port = settings.ops_port or free_port(settings.ops_host)
        url = own_url(settings.host, port)
        supervisor = Supervisor(
            service_commands(),
            os.environ | as_environment(flags_given(context) | {"port": port, "ops_port": ops_port}),
            ready_url=f"{url}/readyz",
            on_ready=lambda: _announce(url, own_url(settings.ops_host, ops_port), settings.log_format),
        )
        exit_code = supervisor.run(stop_on_signals())
    raise typer.Exit(exit_code)


@app.command()
def api(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    allow_remote: AllowRemote = None,
    ops_host: OpsHost = None,
    ops_port: OpsPort = None,
    log_format: LogFormat = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    storage_url: StorageUrl = None,
    model: Model = None,
    model_name: ModelName = None,
    model_aliases: ModelAliases = None,
    supervised: Supervised = False,
) -> None:
    """Run the HTTP side alone."""
    with start("api", context, supervised) as settings:
        from app.main import run

        run(settings)


@app.command()
def keeper(
    context: typer.Context,
    data_dir: DataDir = None,
    log_format: LogFormat = None,
    database_url: DatabaseUrl = None,
    storage_url: StorageUrl = None,
    model: Model = None,
    model_name: ModelName = None,
    model_aliases: ModelAliases = None,
    supervised: Supervised = False,
) -> None:
    """Run alone what migrates, validates, finalises and cleans up."""
    with start("keeper", context, supervised) as settings:
        from app.db.session import Database
        from app.keeper import Keeper
        from app.storage import open_storage

        storage = open_storage(settings)
        database = Database(settings.resolved_database_url)
        Keeper(database, storage, settings).run(stop_on_signals())
        database.dispose()


@app.command()
def worker(
    context: typer.Context,
    data_dir: DataDir = None,
    log_format: LogFormat = None,
    database_url: DatabaseUrl = None,
    storage_url: StorageUrl = None,
    model: Model = None,
    model_name: ModelName = None,
    model_aliases: ModelAliases = None,
    default_max_tokens: DefaultMaxTokens = None,
    kv_memory: KvMemory = None,
    max_batch_tokens: MaxBatchTokens = None,
    threads: Threads = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    supervised: Supervised = False,
) -> None:
    """Run the model alone: claims batches and computes them."""
    with start("worker", context, supervised) as settings:
        from app.engine_factory import engine_from_settings
        from app.worker_process import run_worker

        run_worker(settings, lambda: engine_from_settings(settings), stop_on_signals())


@app.command()
def pull(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Hub id or directory.", show_default=False)] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Fetch a model ahead of time; prints its directory."""
    with start("pull", context) as settings:
        from engine.execution.resolve import resolve_model

        directory = resolve_model(settings.model, settings.cache_dir, lambda step: typer.echo(step, err=True))
    typer.echo(directory)


@app.command()
def run(
    context: typer.Context,
    input: Annotated[Path, typer.Argument(help="Batch file, JSONL.", show_default=False)],
    output: Annotated[Path, option("Where the answers go.", "--output", "-o")],
    errors: Annotated[Path | None, option("Where failed lines go; OUTPUT.errors.jsonl by default.")] = None,
    skip_invalid: Annotated[
        bool, option("Make invalid lines error lines; without it, nothing runs.", "--skip-invalid")
    ] = False,
    as_json: Annotated[bool, option("Print one JSON object as the last line.", "--json")] = False,
    model: Model = None,
    model_name: ModelName = None,
    model_aliases: ModelAliases = None,
    default_max_tokens: DefaultMaxTokens = None,
    kv_memory: KvMemory = None,
    max_batch_tokens: MaxBatchTokens = None,
    threads: Threads = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    device: Device = None,
    cache_dir: CacheDir = None,
) -> None:
    """Run a batch file without a service. The same command again goes on where it was interrupted."""
    with start("run", context) as settings:
        from app.engine_factory import engine_from_settings
        from app.job_folder import Job
        from app.run_command import run_and_report

        validation = Validation.SKIP if skip_invalid else Validation.STRICT
        job = Job(input, output, errors or output.parent / f"{output.stem}.errors.jsonl", validation)
        exit_code = run_and_report(
            job, settings, lambda: engine_from_settings(settings), stop_on_signals(), as_json=as_json
        )
    raise typer.Exit(exit_code)


@app.command()
def plan(
    context: typer.Context,
    input: Annotated[Path, typer.Argument(help="Batch file, JSONL.", show_default=False)],
    hardware: Annotated[str, typer.Option(help="cpu (this machine), a100, h100, h200 or mi300x.")] = "cpu",
    as_json: Annotated[bool, option("Print one JSON object as the last line.", "--json")] = False,
    model: Model = None,
    model_name: ModelName = None,
    model_aliases: ModelAliases = None,
    default_max_tokens: DefaultMaxTokens = None,
    kv_memory: KvMemory = None,
    max_batch_tokens: MaxBatchTokens = None,
    threads: Threads = None,
    cache_dir: CacheDir = None,
) -> None:
    """Tell what a batch file would cost and which lines would fail; nothing runs.

    --model also takes names such as llama-3.1-8b: priced by size, counted by the default tokenizer.
    """
    from engine.hardware import HARDWARE, MODELS

    shape_name = model if model in MODELS else None
    if shape_name is not None:
        context.params["model"] = None
    with start("plan", context) as settings:
        from app.dry_run import dry_run, summary

        if hardware not in ("cpu", *HARDWARE):
            raise StartupError(f"No hardware {hardware!r} is known: choose cpu, {', '.join(HARDWARE)}.")
        if not input.is_file():
            raise StartupError(f"The input {input} is not a file that can be read: check the path.")
        planned = dry_run(input, settings, hardware, shape_name)
        typer.echo(planned.as_json() if as_json else summary(planned))


register(app)
register_tenants(app)


def main() -> None:
    app()


def as_environment(flags: dict[str, Any]) -> dict[str, str]:
    """The flags of `serve` as its processes read them."""
    return {f"BATCHLLM_{name.upper()}": str(value) for name, value in flags.items()}


def _announce(url: str, ops_url: str, log_format: str) -> None:
    """Where the service answers: for people, or as one more event where the log is for machines."""
    if log_format == "json":
        logging.getLogger("app.serve").info(
            "Ready.", extra={"url": f"{url}/v1", "metrics": f"{ops_url}/metrics"}
        )
        return
    typer.echo(f"BatchLLM answers at {url}/v1; Ctrl-C stops it.", err=True)
    typer.echo(f"Metrics and probes: {ops_url}/metrics", err=True)


def own_url(host: str, port: int) -> str:
    """Where an api that listens on `host` answers from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host).strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set. A second one ends the process the hard way."""
    stop = threading.Event()

    def ask_to_stop(number: int, frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    return stop


if __name__ == "__main__":
    main()
