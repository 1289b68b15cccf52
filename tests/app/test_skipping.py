"""`validation: skip`: invalid lines become error lines, and the others run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app import validation
from app.db.files import get_file
from app.db.lines import iter_results, pending_lines
from app.db.session import Database
from app.keeper import Keeper
from app.lifecycle import BatchStatus, Validation
from app.retrying import create_retry
from app.settings import Settings
from app.storage import DirectoryStorage, Storage
from tests.app.db.jobs import read_batch, set_columns
from tests.app.steps import answer, cancel, claim_one, request, submit

_S = BatchStatus


def submit_skipping(database: Database, storage: Storage, lines: list[bytes]) -> str:
    batch_id = submit(database, storage, lines)
    set_columns(database, batch_id, validation=Validation.SKIP)
    return batch_id


def error_lines(database: Database, batch_id: str) -> list[dict[str, Any]]:
    with database.read() as session:
        return [orjson.loads(result.payload) for result in iter_results(session, batch_id, ok=False)]


def test_invalid_lines_become_error_lines(
    database: Database, storage: Storage, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_LINES_PER_TRANSACTION", 2)
    lines = [b"x", request("a"), b"", b"[]", request("a"), request("b", method="GET"), request("b")]
    batch_id = submit_skipping(database, storage, [*lines, request(7), request("d")])
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total, batch.failed, batch.model) == (_S.IN_PROGRESS, 8, 6, "m")
    assert batch.errors is None
    with database.read() as session:
        assert [(line.line, line.custom_id) for line in pending_lines(session, batch_id)] == [
            (2, "a"),
            (9, "d"),
        ]
    found = error_lines(database, batch_id)
    errors = [line["response"]["body"]["error"] for line in found]
    assert [
        (line["custom_id"], error["line"], error["code"]) for line, error in zip(found, errors, strict=True)
    ] == [
        (f"{batch_id}_line_1", 1, "invalid_json_line"),
        (f"{batch_id}_line_4", 4, "invalid_request"),
        (f"{batch_id}_line_5", 5, "duplicate_custom_id"),
        ("b", 6, "invalid_method"),
        (f"{batch_id}_line_7", 7, "duplicate_custom_id"),
        (f"{batch_id}_line_8", 8, "invalid_type"),
    ]
    assert all(line["response"]["status_code"] == 400 and line["error"] is None for line in found)
    assert (errors[3]["param"], errors[3]["message"]) == (
        "method",
        "Invalid method: 'GET'. Only 'POST' is supported.",
    )
    answer(database, claim_one(database), {"a": True, "d": True})
    batch = read_batch(database, batch_id)
    assert (batch.completed, batch.failed, batch.total) == (2, 6, 8)


def test_a_batch_of_invalid_lines_alone_completes(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_skipping(database, storage, [b"x", b"y"])
    while keeper.tick():
        pass
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total, batch.failed, batch.output_file_id) == (_S.COMPLETED, 2, 2, None)
    with database.read() as session:
        file = get_file(session, batch.error_file_id or "")
    assert file is not None
    with storage.open(file.storage_key) as blob:
        assert [orjson.loads(line)["custom_id"] for line in blob] == [
            f"{batch_id}_line_1",
            f"{batch_id}_line_2",
        ]


@pytest.mark.parametrize(("lines", "code"), [([], "empty_file"), ([b"x"] * 9, "too_many_tasks")])
def test_what_is_wrong_with_the_file_fails_the_batch(
    database: Database, storage: Storage, settings: Settings, lines: list[bytes], code: str
) -> None:
    batch_id = submit_skipping(database, storage, lines)
    few = settings.model_copy(update={"max_requests_per_batch": 8})
    Keeper(database, storage, few).tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total) == (_S.FAILED, 0)
    assert [error["code"] for error in batch.errors or []] == [code]
    assert error_lines(database, batch_id) == []


def test_a_cancelled_batch_keeps_its_skipped_lines(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_skipping(database, storage, [b"x", request("a")])
    keeper.tick()
    cancel(database, batch_id)
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total, batch.failed) == (_S.CANCELLED, 2, 1)
    with database.read() as session:
        file = get_file(session, batch.error_file_id or "")
    assert file is not None
    with storage.open(file.storage_key) as blob:
        written = [orjson.loads(line) for line in blob]
    assert written[0]["response"]["body"]["error"]["code"] == "invalid_json_line"
    assert written[1]["error"]["code"] == "batch_cancelled"


def test_a_retry_skips_as_well(database: Database, storage: Storage, settings: Settings) -> None:
    """A line that is too long is copied, whatever its length."""
    short = settings.model_copy(update={"max_line_bytes": 200})
    long = b"y" * 3_000_000
    batch_id = submit_skipping(database, storage, [long, request("a"), b"x"])
    keeper = Keeper(database, storage, short)
    keeper.tick()
    cancel(database, batch_id)
    keeper.tick()
    retry = create_retry(database, storage, short, read_batch(database, batch_id))
    with database.read() as session:
        file = get_file(session, retry.input_file_id)
    assert file is not None
    with storage.open(file.storage_key) as blob:
        assert blob.read() == long + b"\n" + request("a") + b"\n" + b"x\n"
    keeper.tick()
    again = read_batch(database, retry.id)
    assert (again.status, again.total, again.failed) == (_S.IN_PROGRESS, 3, 2)


_IDS = st.sampled_from(["a", "b", "c", "", 5])  # two of them are no custom_id
_LINES = st.one_of(
    _IDS.map(lambda id_: request(id_)),
    _IDS.map(lambda id_: request(id_, url="/v1/other")),
    st.sampled_from([b"{", b"[]", b"", b"\xff", b'{"custom_id":"a"}']),
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(_LINES, min_size=1, max_size=12))
def test_every_line_is_there_once(
    sqlite_keeper: Callable[[], tuple[Database, Storage, Keeper]], lines: list[bytes]
) -> None:
    """Lines with something in them = lines to run + error lines; no custom_id twice, numbers right."""
    database, storage, keeper = sqlite_keeper()
    batch_id = submit_skipping(database, storage, lines)
    keeper.tick()
    numbers = [number for number, line in enumerate(lines, start=1) if line]
    batch = read_batch(database, batch_id)
    assert batch.status == (
        _S.FAILED if not numbers else _S.FINALIZING if batch.failed == batch.total else _S.IN_PROGRESS
    )
    if not numbers:
        return
    errors = error_lines(database, batch_id)
    with database.read() as session:
        pending = pending_lines(session, batch_id)
    found = [line.line for line in pending]
    found += [line["response"]["body"]["error"]["line"] for line in errors]
    assert sorted(found) == numbers
    custom_ids = [line.custom_id for line in pending] + [line["custom_id"] for line in errors]
    assert len(set(custom_ids)) == len(custom_ids) == batch.total
    assert batch.failed == len(errors)


@pytest.fixture
def sqlite_keeper(
    sqlite_template: Path, tmp_path: Path, settings: Settings
) -> Callable[[], tuple[Database, Storage, Keeper]]:
    """One SQLite database for all examples; each looks at its own batch."""
    path = tmp_path / "batchllm.db"
    path.write_bytes(sqlite_template.read_bytes())
    database, storage = Database(f"sqlite:///{path}"), DirectoryStorage(tmp_path / "data")
    keeper = Keeper(database, storage, settings)

    def parts() -> tuple[Database, Storage, Keeper]:
        while keeper.tick():  # what the example before has left to do
            pass
        return database, storage, keeper

    return parts
