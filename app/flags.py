"""The flags that commands share, and how a command begins."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app.lifeline import follow_parent
from app.serve import EXIT_CANNOT_START
from app.settings import Settings, StartupError, load_settings
from engine.errors import EngineConfigError, ModelNotUsable, ModelRefused


def option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, show_default=False)


# A flag that is not given leaves the setting to BATCHLLM_<NAME>, then to its default.
DataDir = Annotated[Path | None, option("Where files and the SQLite database live.")]
DatabaseUrl = Annotated[str | None, option("sqlite:///... or postgresql://...; SQLite by default.")]
StorageUrl = Annotated[str | None, option("s3://bucket/prefix; files then live there.")]
Host = Annotated[str | None, option("Address to listen on; 127.0.0.1 by default.")]
Port = Annotated[int | None, option("Port to listen on; 8000 by default.")]
AllowRemote = Annotated[bool | None, option("Listen beyond this machine.", "--allow-remote")]
OpsHost = Annotated[str | None, option("Address of /metrics and the probes; 127.0.0.1 by default.")]
OpsPort = Annotated[int | None, option("Port of /metrics and the probes; 8001 by default.")]
LogFormat = Annotated[str | None, option("text or json.")]
Model = Annotated[str | None, option("Hub id or local directory of the model.")]
ModelName = Annotated[str | None, option("The name by which requests ask for the model.")]
ModelAliases = Annotated[str | None, option("Other names for the model, such as gpt-4o,gpt-4o-mini.")]
DefaultMaxTokens = Annotated[int | None, option("Most output tokens of a chat that does not say.")]
KvMemory = Annotated[str | None, option("Memory for keys and values, such as 512MiB or 2GiB.")]
MaxBatchTokens = Annotated[int | None, option("Most tokens computed in one step.")]
Threads = Annotated[int | None, option("CPU threads.")]
Dtype = Annotated[str | None, option("float32, bfloat16 or float16.")]
Quantize = Annotated[str | None, option("int8: faster linear layers, other answers; CPU only.")]
Device = Annotated[str | None, option("cpu or cuda.")]
CacheDir = Annotated[Path | None, option("Where models are kept.")]
Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]


@contextmanager
def start(name: str, context: typer.Context, supervised: bool = False) -> Iterator[Settings]:
    """What every command begins with; its settings. What cannot start says so in one sentence and ends."""
    if supervised:
        follow_parent()
    try:
        settings = load_settings(**flags_given(context))
        from app.logs import start_log

        # `run` shows a bar and a summary.
        start_log(name, settings.log_format, logging.WARNING if name == "run" else logging.INFO)
        yield settings
    except (StartupError, ModelNotUsable, ModelRefused, EngineConfigError) as error:
        typer.echo(f"batchllm {name}: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from error


def flags_given(context: typer.Context) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {
        name: value
        for name, value in context.params.items()
        if name in Settings.model_fields and value is not None
    }
