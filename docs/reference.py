"""Writes docs/guide/reference-*.md from the code: commands, settings, metrics, API. `make reference`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from app.cli import app
from app.metric_names import COUNTERS, GAUGES, HISTOGRAMS
from app.metrics import SERVICE_GAUGES, HttpFigures
from app.settings import Settings
from docs.api_reference import api_reference

GUIDE = Path(__file__).parent / "guide"
MADE = "<!-- Made by `make reference` from the code; edits here are lost. -->\n"

EXIT_CODES = """
## Exit codes

| code | |
|---|---|
| 0 | done; with `--watch`, the batch is completed (lines may have failed: see `request_counts`) |
| 1 | the batch failed, expired or was cancelled; `doctor` found something broken |
| 2 | wrong arguments; an input that cannot be used (`run`, `convert`, `join`) |
| 3 | it cannot start as configured; the sentence on standard error says what to change |
| 4 | the service refused, or none answers |
| 130 | interrupted by Ctrl-C; a batch of a service goes on |

With `--json` a command prints one JSON object on standard output; everything for people goes to standard
error. Batches look as the API shows them; `list` prints `{"data": [...]}`, `doctor` prints
`{"ok": ..., "checks": [...]}`.

## Shell completion

`batchllm --install-completion` sets it up for bash, zsh, fish and PowerShell; `--show-completion` prints it.
"""


def cli_reference() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    parts = [MADE, "# Commands\n", f"{root.help}\n"]
    for name, command in _commands("batchllm", root):
        arguments = " ".join(_metavar(p) for p in command.params if p.param_type_name == "argument")
        parts.append(f"## {name}\n\n`{f'{name} {arguments}'.strip()}`\n\n{_paragraphs(command.help)}\n")
        rows = [_parameter_row(p) for p in command.params if not getattr(p, "hidden", False)]
        if rows:
            parts.append("| | | default |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts) + EXIT_CODES


def settings_reference() -> str:
    """Every setting with its flag's name, environment variable and default."""
    flags = {
        option
        for name, command in _commands("batchllm", typer.main.get_command(app))
        if name != "batchllm limits set"  # its flags are for one tenant, not the service's settings
        for parameter in command.params
        for option in parameter.opts
    }
    lines = [
        MADE,
        "# Settings\n",
        "A setting is a flag of the commands that need it, or an environment variable; the flag wins.\n",
        "| environment variable | flag | default | |\n|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        shown = f"`{flag}`" if flag in flags else ""
        lines.append(f"| `BATCHLLM_{name.upper()}` | {shown} | {_default(field)} | {field.description} |")
    client = (
        "\n`BATCHLLM_URL` and `BATCHLLM_API_KEY` name the service that commands for jobs ask, and the key."
    )
    return "\n".join(lines) + "\n" + client + "\n"


def metrics_reference() -> str:
    """Every metric with its type and labels."""
    rows = [(f"{HttpFigures.NAME}_total", "counter", ", ".join(HttpFigures.LABELS), HttpFigures.HELP)]
    rows += [(name, "gauge", label or "", help) for name, (help, label) in SERVICE_GAUGES.items()]
    rows += [(f"batchllm_worker_{name}_total", "counter", "worker", help) for name, help in COUNTERS.items()]
    rows += [(f"batchllm_worker_{name}", "gauge", "worker", help) for name, help in GAUGES.items()]
    rows += [(f"batchllm_worker_{name}", "histogram", "worker", h) for name, (h, _) in HISTOGRAMS.items()]
    table = [f"| `{name}` | {kind} | {labels} | {help} |" for name, kind, labels, help in rows]
    head = [
        MADE,
        "# Metrics\n",
        "`GET /metrics` on the port of operations (8001 by default, `--ops-port`), without a key. Workers",
        "tell their figures every five seconds through the database: one address shows the whole service.",
        "Beside these there are the `process_*` figures of the api's process.\n",
        "| metric | type | labels | |\n|---|---|---|---|",
    ]
    return "\n".join([*head, *table]) + "\n"


PAGES = {
    "reference-cli.md": cli_reference,
    "reference-settings.md": settings_reference,
    "reference-metrics.md": metrics_reference,
    "reference-api.md": lambda: api_reference(MADE),
}


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for child_name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _commands(f"{name} {child_name}", child)
        else:
            yield f"{name} {child_name}", child


def _metavar(parameter: Any) -> str:
    name = parameter.name.upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _parameter_row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
    default = parameter.default
    is_silent = callable(default) or default in (None, False) or parameter.required
    environment = f" (`{parameter.envvar}`)" if getattr(parameter, "envvar", None) else ""
    return f"| `{names}` | {parameter.help}{environment} | {'' if is_silent else f'`{default}`'} |"


def _paragraphs(text: str | None) -> str:
    return re.sub(r"\n +", "\n", (text or "").strip())


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "the user's own directory"
    return "" if field.default in (None, ()) else f"`{field.default}`"


def main() -> None:
    for name, page in PAGES.items():
        (GUIDE / name).write_text(page())


if __name__ == "__main__":
    main()
