"""The end of a batch: its files and its status."""

import pytest

from app.db.files import get_file
from app.db.leases import LeaseLost, release
from app.db.session import Database, now
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.settings import Settings
from app.storage import Storage
from tests.app.db.jobs import read_batch, set_columns
from tests.app.steps import (
    answer,
    cancel,
    claim_one,
    custom_ids,
    files_and_blobs,
    finish,
    lines_of,
    submit_good,
)

_S = BatchStatus
_PAST = 1_000


def test_a_finished_batch_gets_its_files(
    database: Database, storage: Storage, keeper: Keeper, settings: Settings
) -> None:
    batch_id = submit_good(database, storage, 4)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r4": True, "r3": False})
    answer(database, claim, {"r2": True, "r1": False})
    assert not keeper.tick()
    finish(database, claim)
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.completed, batch.failed) == (_S.COMPLETED, 2, 2)
    assert custom_ids(database, storage, batch.output_file_id) == ["r2", "r4"]
    assert custom_ids(database, storage, batch.error_file_id) == ["r1", "r3"]
    with database.read() as session:
        output = get_file(session, batch.output_file_id or "")
        error = get_file(session, batch.error_file_id or "")
        moment = now(session)
    assert output is not None
    assert error is not None
    assert (output.filename, output.purpose) == (f"{batch_id}_output.jsonl", "batch_output")
    assert (error.filename, error.purpose) == (f"{batch_id}_error.jsonl", "batch_output")
    assert output.expires_at is not None
    assert abs(output.expires_at - moment - settings.output_retention_seconds) <= 5
    assert not keeper.tick()


@pytest.mark.parametrize("ok", [True, False])
def test_a_file_without_lines_is_not_created(
    database: Database, storage: Storage, keeper: Keeper, ok: bool
) -> None:
    batch_id = submit_good(database, storage, 2)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": ok, "r2": ok})
    finish(database, claim)
    keeper.tick()
    batch = read_batch(database, batch_id)
    assert batch.status == _S.COMPLETED
    assert (batch.output_file_id is None) != ok
    assert (batch.error_file_id is None) == ok
    assert files_and_blobs(database, storage) == (2, 2)


def test_a_batch_that_never_ran_is_cancelled_at_once(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 2)
    keeper.tick()
    cancel(database, batch_id)
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.total, batch.completed, batch.failed) == (_S.CANCELLED, 2, 0, 0)
    assert batch.output_file_id is None
    lines = lines_of(database, storage, batch.error_file_id)
    assert lines is not None
    error = {"code": "batch_cancelled", "message": "This request was cancelled before it ran."}
    assert [line.pop("id").startswith("batch_req_") for line in lines] == [True, True]  # type: ignore[attr-defined]
    assert lines == [{"custom_id": name, "response": None, "error": error} for name in ("r1", "r2")]


def test_a_cancelled_batch_waits_for_its_worker_and_keeps_its_results(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 4)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r3": True})
    cancel(database, batch_id)
    assert not keeper.tick()
    answer(database, claim, {"r2": False})  # what was in flight
    with database.begin() as session:
        release(session, claim)
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.completed, batch.failed) == (_S.CANCELLED, 1, 1)
    assert custom_ids(database, storage, batch.output_file_id) == ["r3"]
    assert custom_ids(database, storage, batch.error_file_id) == ["r1", "r2", "r4"]


def test_an_expired_batch_keeps_its_results_and_shuts_out_its_worker(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 3)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r2": True})
    set_columns(database, batch_id, expires_at=_PAST)
    assert keeper.tick()
    with pytest.raises(LeaseLost):
        answer(database, claim, {"r1": True})
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.completed, batch.failed) == (_S.EXPIRED, 1, 0)
    assert custom_ids(database, storage, batch.output_file_id) == ["r2"]
    lines = lines_of(database, storage, batch.error_file_id)
    assert lines is not None
    assert [line["custom_id"] for line in lines] == ["r1", "r3"]
    assert lines[0]["error"] == {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }


def test_a_batch_that_expires_before_it_was_validated(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 3)
    set_columns(database, batch_id, expires_at=_PAST)
    assert keeper.tick()
    batch = read_batch(database, batch_id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == (_S.EXPIRED, None, None)


def test_a_line_that_was_forgotten_does_not_vanish(
    database: Database, storage: Storage, keeper: Keeper
) -> None:
    batch_id = submit_good(database, storage, 2)
    keeper.tick()
    claim = claim_one(database)
    answer(database, claim, {"r1": True})
    finish(database, claim)
    keeper.tick()
    batch = read_batch(database, batch_id)
    lines = lines_of(database, storage, batch.error_file_id)
    assert lines is not None
    assert [line["custom_id"] for line in lines] == ["r2"]
