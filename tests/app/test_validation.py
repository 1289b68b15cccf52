"""A new batch: rows and blobs in, `in_progress` or `failed` out."""

import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from app import validation
from app.batch_input import InputLine
from app.db.files import create_file, get_file
from app.db.lines import add_request_lines, pending_lines
from app.db.session import Database
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import DirectoryStorage, Storage
from tests.app.db.jobs import add_batch, read_batch
from tests.app.steps import cancel, request, submit, submit_good, upload

_S = BatchStatus
_PAST = 1_000


def test_a_good_batch_starts(database: Database, storage: Storage, keeper: Keeper) -> None:
    batch_id = submit(database, storage, [request("a"), b"", request("b"), request("c")])
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total, batch.model, batch.errors) == (_S.IN_PROGRESS, 3, "m", None)
    assert batch.in_progress_at is not None
    with database.read() as session:
        lines = pending_lines(session, batch_id)
        file = get_file(session, batch.input_file_id)
    assert [(line.line, line.custom_id) for line in lines] == [(1, "a"), (3, "b"), (4, "c")]
    assert file is not None
    with storage.open(file.storage_key) as blob:
        data = blob.read()
    assert orjson.loads(data[lines[1].offset : lines[1].offset + lines[1].length])["custom_id"] == "b"
    assert not keeper.tick()


def test_mixed_models_leave_the_model_open(database: Database, storage: Storage, settings: Settings) -> None:
    lines = [request("a"), request("b", body={"model": "n", "messages": []})]

    class TwoModels(Settings):
        @property
        def served_models(self) -> list[str]:
            return ["m", "n"]

    batch_id = submit(database, storage, lines)
    Keeper(database, storage, TwoModels(data_dir=settings.data_dir)).tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.model) == (_S.IN_PROGRESS, None)


def test_a_bad_batch_fails_with_all_errors(
    database: Database, storage: Storage, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines stored before the first error was met are gone again."""
    monkeypatch.setattr(validation, "_LINES_PER_TRANSACTION", 2)
    lines = [request(f"r{n}") for n in range(5)] + [b"x", request("r0"), request("ok"), b"[]"]
    batch_id = submit(database, storage, lines)
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total) == (_S.FAILED, 0)
    assert batch.errors is not None
    assert [(error["line"], error["code"]) for error in batch.errors] == [
        (6, "invalid_json_line"),
        (7, "duplicate_custom_id"),
        (9, "invalid_request"),
    ]
    assert set(batch.errors[0]) == {"code", "message", "param", "line"}
    with database.read() as session:
        assert pending_lines(session, batch_id) == []
    assert not keeper.tick()


def test_errors_are_listed_up_to_a_limit(database: Database, storage: Storage, keeper: Keeper) -> None:
    batch_id = submit(database, storage, [b"x"] * 8)
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert [error["line"] for error in batch.errors or []] == [1, 2, 3, 4, 5]


def test_an_empty_file(database: Database, storage: Storage, keeper: Keeper) -> None:
    batch_id = submit(database, storage, [b"", b" "])
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert batch.status == _S.FAILED
    assert [(error["code"], error["line"]) for error in batch.errors or []] == [("empty_file", None)]


def test_an_input_that_is_not_there(database: Database, storage: Storage, keeper: Keeper) -> None:
    with database.begin() as session:
        missing_row = add_batch(session, "file-unknown")
        blobless = create_file(
            session, purpose="batch", filename="f", num_bytes=1, storage_key="0" * 32, expires_seconds=None
        )
        missing_blob = add_batch(session, blobless.id)
    wrong = upload(database, storage, b"{}", purpose="user_data")
    with database.begin() as session:
        wrong_purpose = add_batch(session, wrong)
    while keeper.tick():
        pass
    for batch_id, message in [
        (
            missing_row.id,
            "Cannot find file file-unknown, or organization default does not have access to it.",
        ),
        (
            missing_blob.id,
            f"Cannot find file {blobless.id}, or organization default does not have access to it.",
        ),
        (
            wrong_purpose.id,
            f"The file {wrong} has the purpose 'user_data'; the input of a batch needs 'batch'.",
        ),
    ]:
        batch = read_batch(database, batch_id)
        error = {"code": "invalid_request", "message": message, "param": "file_id", "line": None}
        assert (batch.status, batch.errors) == (_S.FAILED, [error])


def test_a_killed_validation_is_done_again(database: Database, storage: Storage, keeper: Keeper) -> None:
    batch_id = submit_good(database, storage, 3)
    with database.begin() as session:
        add_request_lines(session, batch_id, [InputLine(1, "r1", 0, 1, "m")])
    keeper.tick()
    with database.read() as session:
        assert [line.custom_id for line in pending_lines(session, batch_id)] == ["r1", "r2", "r3"]


class _StorageThatCalls(DirectoryStorage):
    """Calls `back` when a blob is opened, as if something happened during validation."""

    back: Callable[[], None]

    def open(self, key: str):  # type: ignore[no-untyped-def]
        self.back()
        return super().open(key)


def test_a_cancel_during_validation_is_noticed(
    database: Database, tmp_path: Path, settings: Settings
) -> None:
    storage = _StorageThatCalls(tmp_path / "data")
    batch_id = submit_good(database, storage, 3)
    storage.back = lambda: cancel(database, batch_id)
    keeper = Keeper(database, storage, settings)
    assert keeper.tick()
    assert read_batch(database, batch_id).status == _S.CANCELLING
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total, batch.in_progress_at) == (_S.CANCELLED, 0, None)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_how_far_it_is_can_be_seen(
    database: Database, storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_LINES_PER_TRANSACTION", 1)

    class AtTheThirdLook(threading.Event):
        num_looks = 0

        def is_set(self) -> bool:
            self.num_looks += 1
            return self.num_looks == 3

    batch_id = submit_good(database, storage, 5)
    batch = read_batch(database, batch_id)
    validation.validate_batch(database, storage, batch, settings, AtTheThirdLook())
    assert read_batch(database, batch_id).progress == {"lines_read": 2}


def test_a_stopping_keeper_leaves_validation(
    database: Database, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_LINES_PER_TRANSACTION", 1)
    storage = _StorageThatCalls(tmp_path / "data")
    batch_id = submit_good(database, storage, 3)
    stop = threading.Event()
    storage.back = stop.set
    Keeper(database, storage, settings).run(stop)
    assert read_batch(database, batch_id).status == _S.VALIDATING
