"""`convert` and `join`: from arguments to files, with one sentence where it cannot be done."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import typer

from app.client.convert import Asking, NotConvertible, batch_lines, join_results, read_rows, row_writer
from app.whole_file import whole_file

EXIT_NOT_CONVERTIBLE = 2


def make_batch_file(
    table: Path,
    output: Path,
    *,
    template: str | None,
    template_file: Path | None,
    schema_file: Path | None,
    **asking: Any,
) -> int:
    """Write the batch file; the number of its lines. typer.Exit."""
    with _told("convert"), _checked(output, table) as unfinished:
        if (template is None) == (template_file is None):
            raise NotConvertible("Give the prompt with either --template or --template-file.")
        text = template if template is not None else _read(template_file)
        schema = None if schema_file is None else _schema(schema_file)
        count = 0
        with unfinished.open("wb") as target:
            for line in batch_lines(read_rows(table), Asking(template=text, schema=schema, **asking)):
                target.write(line + b"\n")
                count += 1
        if not count:
            raise NotConvertible(f"{table} has no rows.")
    return count


def join_table(table: Path, results: Sequence[Path], output: Path, id_column: str | None) -> tuple[int, int]:
    """Write the joined table; how many rows it has, and how many of them an answer. typer.Exit."""
    total = answered = 0
    with _told("join"), _checked(output, table, *results) as unfinished, row_writer(unfinished) as write:
        for row in join_results(read_rows(table), results, id_column):
            write(row)
            total += 1
            answered += row["error"] is None
    return total, answered


@contextmanager
def _told(command: str) -> Iterator[None]:
    try:
        yield
    except NotConvertible as error:
        typer.echo(f"batchllm {command}: {error}", err=True)
        raise typer.Exit(EXIT_NOT_CONVERTIBLE) from error


@contextmanager
def _checked(output: Path, *inputs: Path) -> Iterator[Path]:
    """A name to write `output` to, which is none of the inputs."""
    if output.resolve() in {path.resolve() for path in inputs}:
        raise NotConvertible(f"{output} is an input as well: choose another name.")
    try:
        with whole_file(output) as unfinished:
            yield unfinished
    except OSError as error:
        raise NotConvertible(f"{output} cannot be written ({error.strerror}): choose another.") from error


def _read(path: Path | None) -> str:
    assert path is not None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotConvertible(f"{path} cannot be read ({error}): check the path.") from error


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = orjson.loads(_read(path))
    except orjson.JSONDecodeError as error:
        raise NotConvertible(f"{path} is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise NotConvertible(f"{path} is not a JSON schema: it must be an object.")
    return schema
