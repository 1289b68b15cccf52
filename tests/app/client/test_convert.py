"""Tables to batch files and back."""

import csv
import json
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.batch_input import InputLimits, InputLine, read_lines
from app.client.convert import Asking, NotConvertible, batch_lines, join_results, read_rows, row_writer
from app.client.converting import make_batch_file
from app.openai.body import Translated, TranslationContext
from app.openai.chat import parse_chat
from engine.request import Grammar, GrammarKind
from tests.app.test_cli import batchllm_here
from tests.fakes import ByteTokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
ROWS = [
    {"id": "a", "text": 'Hello, "world"\nbye', "the lang": "fr"},
    {"id": "b", "text": "ünï", "the lang": "de"},
]
TEMPLATE = "{{ text }} in {{ row['the lang'] }}"


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with row_writer(path) as write_row:
        for row in rows:
            write_row(row)
    return path


def result(custom_id: str, text: str) -> dict[str, object]:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return {
        "custom_id": custom_id,
        "response": {"status_code": 200, "body": {"choices": [choice]}},
        "error": None,
    }


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_there_and_back(tmp_path: Path, suffix: str) -> None:
    table = write(tmp_path / f"table.{suffix}", ROWS)
    assert list(read_rows(table)) == ROWS
    batch, answers, joined = tmp_path / "b.jsonl", tmp_path / "answers.jsonl", tmp_path / f"joined.{suffix}"
    options = ("--id-column", "id", "--model", "tiny", "--system", "Be brief.", "--max-tokens", "7")
    made = batchllm_here("convert", table, "-o", batch, "--template", TEMPLATE, *options)
    assert made.returncode == 0, made.stderr
    with batch.open("rb") as lines:
        limits = InputLimits(max_line_bytes=10_000, max_requests=10)
        read = list(read_lines(lines, endpoint="/v1/chat/completions", served_models=["tiny"], limits=limits))
    assert all(isinstance(line, InputLine) for line in read)
    first = json.loads(batch.read_text().splitlines()[0])
    assert first["body"]["max_tokens"] == 7
    assert [m["content"] for m in first["body"]["messages"]] == ["Be brief.", 'Hello, "world"\nbye in fr']
    errors = tmp_path / "errors.jsonl"
    answers.write_text(json.dumps(result("b", "Zwei")) + "\n")
    errors.write_text(
        json.dumps(
            {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "Late."}}
        )
    )
    done = batchllm_here("join", table, answers, errors, "-o", joined, "--id-column", "id")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 rows have an answer" in done.stderr
    one, two = read_rows(joined)
    assert (one["text"], one["answer"] or None, one["error"]) == (
        ROWS[0]["text"],
        None,
        "batch_expired: Late.",
    )
    assert (two["answer"], two["finish_reason"], two["error"] or None) == ("Zwei", "stop", None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=8), data=st.data())
def test_every_answer_finds_its_row(tmp_path: Path, rows: list[dict[str, str]], data: st.DataObject) -> None:
    table = write(tmp_path / "table.csv", [dict(row) for row in rows])
    assert list(read_rows(table)) == rows
    lines = [json.loads(line) for line in batch_lines(read_rows(table), Asking("{{ a }}|{{ b }}", "m"))]
    prompts = [line["body"]["messages"][0]["content"] for line in lines]
    assert prompts == [f"{row['a']}|{row['b']}" for row in rows]
    shuffled = data.draw(st.permutations(lines))
    answers = tmp_path / "answers.jsonl"
    echo = (result(line["custom_id"], line["body"]["messages"][0]["content"]) for line in shuffled)
    answers.write_text("".join(json.dumps(one) + "\n" for one in echo))
    assert [row["answer"] for row in join_results(read_rows(table), [answers], None)] == prompts


@pytest.mark.parametrize(
    ("content", "template", "id_column", "words"),
    [
        ("a,b\n1,2\n", "{{ c }}", None, "no column 'c'; it has 'a', 'b'"),
        ("a,b\n1,2\n", "{{ a", None, "template's line 1"),
        ("a,b\n1,2\n", "{{ row['c'] }}", None, "row 1"),
        ("a,b\n1,2\n", "{{ a.__class__.__mro__ }}", None, "row 1"),
        ("a,b\n1,2\n1,3\n", "{{ a }}", "a", "row 2: the id '1' was there before"),
        ("a,b\n,2\n", "{{ b }}", "a", "row 1: its id"),
        ("a,b\n1,2\n", "{{ a }}", "nope", "no column 'nope'"),
        ("a,b\n1\n", "{{ a }}", None, ":2: the row has not as many fields"),
        ("a,b\n1,2,3\n", "{{ a }}", None, ":2: the row has not as many fields"),
        ("", "{{ a }}", None, "has no rows"),
    ],
)
def test_what_cannot_be_converted(
    tmp_path: Path,
    content: str,
    template: str,
    id_column: str | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, batch = tmp_path / "table.csv", tmp_path / "b.jsonl"
    table.write_text(content)
    with pytest.raises(typer.Exit) as ended:
        make_batch_file(
            table,
            batch,
            template=template,
            template_file=None,
            schema_file=None,
            model="m",
            id_column=id_column,
        )
    assert ended.value.exit_code == 2
    assert words in capsys.readouterr().err
    assert not batch.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", b'{"a": 1}\nno\n', "t.jsonl:2: not JSON"),
        ("t.jsonl", b"[1]\n", "t.jsonl:1: not a JSON object"),
        ("t.csv", b"a\n\xff\n", "not UTF-8"),
        ("t.parquet", b"PAR?", "not a Parquet file"),
        ("t.xlsx", b"", "no table known here"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotConvertible, match=words.replace("?", r"\?")):
        list(read_rows(tmp_path / name))
    with pytest.raises(NotConvertible, match="check the path"):
        list(read_rows(tmp_path / f"missing-{name}.csv"))


def test_a_table_is_never_held_in_memory(tmp_path: Path) -> None:
    """Rows come one by one: an endless table gives its first lines at once."""

    def endless():  # type: ignore[no-untyped-def]
        number = 0
        while True:
            number += 1
            yield {"n": number}

    lines = batch_lines(endless(), Asking("{{ n }}", "m"))
    assert json.loads([next(lines) for _ in range(1_000)][-1])["custom_id"] == "row-1000"


def test_the_schema_goes_into_every_request(tmp_path: Path) -> None:
    table, schema = tmp_path / "t.csv", tmp_path / "schema.json"
    with table.open("w") as file:
        csv.writer(file).writerows([["a"], ["1"]])
    schema.write_text('{"type": "object"}')
    asked = ("--template", "{{ a }}", "--schema", schema, "--temperature", "0")
    assert batchllm_here("convert", table, "-o", tmp_path / "b.jsonl", *asked).returncode == 0
    body = json.loads((tmp_path / "b.jsonl").read_text())["body"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    line = parse_chat(body, TranslationContext(ByteTokenizer(), max_context=200), seed_key="a")
    assert isinstance(line, Translated)
    assert line.sampling.grammar == Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    assert body["temperature"] == 0
