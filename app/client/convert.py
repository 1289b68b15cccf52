"""Tables to batch files and back: rows become requests through a template, answers find their rows by id."""

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

ENDPOINT = "/v1/chat/completions"
_ROWS_PER_GROUP = 1_000  # of Parquet, read or written at once

Row = dict[str, Any]


class NotConvertible(Exception):
    """Something in the input keeps it from being converted; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What becomes of a row. id_column: where its custom_id stands; None: row-1, row-2, ..."""

    template: str
    model: str
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    schema: Row | None = None
    id_column: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .csv, .tsv, .parquet or .jsonl file, one after the other. Raises NotConvertible."""
    reader = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl}.get(
        path.suffix.lower()
    )
    if reader is None:
        raise NotConvertible(f"{path} is no table known here: give a .csv, .tsv, .parquet or .jsonl file.")
    try:
        yield from reader(path)
    except OSError as error:
        raise NotConvertible(f"{path} cannot be read ({error.strerror or error}): check the path.") from error
    except UnicodeDecodeError as error:
        raise NotConvertible(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error


def batch_lines(rows: Iterable[Row], asking: Asking) -> Iterator[bytes]:
    """A line of a batch file for each row, without its newline. NotConvertible at the first bad row."""
    render = _renderer(asking.template)
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if number == 1:
            _check_columns(row, asking)
        custom_id = _custom_id(row, number, asking.id_column)
        if custom_id in seen:
            raise NotConvertible(f"row {number}: the id '{custom_id}' was there before: ids must differ.")
        seen.add(custom_id)
        try:
            prompt = render(row)
        except (UndefinedError, SecurityError, TypeError, ValueError) as error:
            raise NotConvertible(f"row {number}: the template cannot be filled in: {error}.") from error
        yield orjson.dumps(
            {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": _body(prompt, asking)}
        )


def join_results(rows: Iterable[Row], results: Iterable[Path], id_column: str | None) -> Iterator[Row]:
    """Each row with `answer`, `finish_reason` and `error` behind its own columns; None where there is none.

    Only the place of each answer is held in memory. Raises NotConvertible.
    """
    places = _places(results)
    files = {path: path.open("rb") for path, _ in places.values()}
    try:
        for number, row in enumerate(rows, start=1):
            taken = {"answer", "finish_reason", "error"} & row.keys()
            if taken:
                raise NotConvertible(f"The table has a column '{min(taken)}' already: rename it first.")
            place = places.get(_custom_id(row, number, id_column))
            if place is None:
                yield row | {"answer": None, "finish_reason": None, "error": "no result"}
                continue
            path, offset = place
            files[path].seek(offset)
            yield row | _outcome(orjson.loads(files[path].readline()))
    finally:
        for file in files.values():
            file.close()


@contextmanager
def row_writer(path: Path) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row into a .csv, .tsv, .parquet or .jsonl file. Raises NotConvertible."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with _parquet_writer(path) as write:
            yield write
    elif suffix == ".jsonl":
        with path.open("wb") as file:
            yield lambda row: _write(file, orjson.dumps(row, default=str) + b"\n")
    elif suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as text:
            writer: csv.DictWriter[str] | None = None

            def write_row(row: Row) -> None:
                nonlocal writer
                if writer is None:
                    writer = csv.DictWriter(text, list(row), delimiter="\t" if suffix == ".tsv" else ",")
                    writer.writeheader()
                writer.writerow(row)

            yield write_row
    else:
        raise NotConvertible(f"{path} has no format: end its name in .csv, .tsv, .parquet or .jsonl.")


def _write(file: Any, data: bytes) -> None:
    file.write(data)


def _read_csv(path: Path) -> Iterator[Row]:
    # utf-8-sig: spreadsheets write a byte order mark
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise NotConvertible(
                        f"{path}:{reader.line_num}: the row has not as many fields as the header."
                    )
                yield row
        except csv.Error as error:
            raise NotConvertible(f"{path}:{reader.line_num}: {error}.") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except orjson.JSONDecodeError as error:
                raise NotConvertible(f"{path}:{number}: not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise NotConvertible(f"{path}:{number}: not a JSON object.")
            yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    pyarrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            for group in file.iter_batches(batch_size=_ROWS_PER_GROUP):
                yield from group.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise NotConvertible(f"{path} is not a Parquet file: {error}.") from error


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Callable[[Row], None]]:
    """Columns have the types of the first thousand rows; the three of the answer are texts."""
    pyarrow, parquet = _pyarrow()
    texts = {name: pyarrow.string() for name in ("answer", "finish_reason", "error")}
    writer: Any = None
    waiting: list[Row] = []

    def flush() -> None:
        nonlocal writer
        if not waiting:
            return
        if writer is None:
            schema = pyarrow.Table.from_pylist(waiting).schema
            fields = [pyarrow.field(field.name, texts.get(field.name, field.type)) for field in schema]
            writer = parquet.ParquetWriter(path, pyarrow.schema(fields))
        try:
            writer.write_table(pyarrow.Table.from_pylist(waiting, schema=writer.schema))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise NotConvertible(f"The rows' types differ: {error}; write .jsonl instead.") from error
        waiting.clear()

    def write(row: Row) -> None:
        waiting.append(row)
        if len(waiting) >= _ROWS_PER_GROUP:
            flush()

    try:
        yield write
        flush()
    finally:
        if writer is not None:
            writer.close()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotConvertible("Parquet needs pyarrow: pip install 'batchllm[parquet]'.") from error
    return pyarrow, pyarrow.parquet


def _renderer(template: str) -> Callable[[Row], str]:
    try:
        compiled = _environment().from_string(template)
    except TemplateSyntaxError as error:
        raise NotConvertible(
            f"The template's line {error.lineno} cannot be understood: {error.message}."
        ) from error
    return lambda row: compiled.render({"row": row} | row)


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def _check_columns(row: Row, asking: Asking) -> None:
    fields = meta.find_undeclared_variables(_environment().parse(asking.template)) - {"row"}
    wanted = fields if asking.id_column is None else fields | {asking.id_column}
    missing = sorted(wanted - row.keys())
    if missing:
        raise NotConvertible(
            f"The table has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, row))}."
        )


def _custom_id(row: Row, number: int, id_column: str | None) -> str:
    if id_column is None:
        return f"row-{number}"
    if row.get(id_column) in (None, ""):
        raise NotConvertible(f"row {number}: its id in the column '{id_column}' is empty or missing.")
    return str(row[id_column])


def _body(prompt: str, asking: Asking) -> Row:
    messages = [] if asking.system is None else [{"role": "system", "content": asking.system}]
    body: Row = {"model": asking.model, "messages": [*messages, {"role": "user", "content": prompt}]}
    if asking.max_tokens is not None:
        body["max_tokens"] = asking.max_tokens
    if asking.temperature is not None:
        body["temperature"] = asking.temperature
    if asking.schema is not None:
        schema = {"name": "answer", "schema": asking.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _places(results: Iterable[Path]) -> dict[str, tuple[Path, int]]:
    """File and offset of each custom_id's line."""
    places: dict[str, tuple[Path, int]] = {}
    for path in results:
        try:
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        try:
                            places[str(orjson.loads(line)["custom_id"])] = (path, offset)
                        except (orjson.JSONDecodeError, KeyError, TypeError):
                            raise NotConvertible(f"{path}:{number}: no line of a batch's results.") from None
                    offset += len(line)
        except OSError as error:
            raise NotConvertible(f"{path} cannot be read ({error.strerror}): check the path.") from error
    return places


def _outcome(result: Row) -> Row:
    error = result.get("error")
    response = result.get("response") or {}
    body = response.get("body") or {}
    error = error or body.get("error")
    if error is not None:
        return {
            "answer": None,
            "finish_reason": None,
            "error": f"{error.get('code')}: {error.get('message')}",
        }
    choices = body.get("choices") or [{}]
    text = choices[0].get("text", (choices[0].get("message") or {}).get("content"))
    return {"answer": text, "finish_reason": choices[0].get("finish_reason"), "error": None}
