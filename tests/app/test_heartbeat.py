"""The heartbeat's own end: the worker notices, and no line is blamed for it."""

import threading

import pytest

from app import heartbeat as heartbeat_module
from app.db.session import Database
from app.heartbeat import HeartbeatFailed
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from tests.app.batches import batch_to_run, chat, lines_of, read_batch, results_of
from tests.fakes import FakeEngine


@pytest.mark.parametrize("duty", ["renew_lease", "give_sign"])
def test_an_unforeseen_error_ends_the_worker(
    database: Database,
    storage: Storage,
    settings: Settings,
    duty: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(heartbeat_module, duty, fail)
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_SECONDS", 0.05)
    batch_id = batch_to_run(database, storage, [chat(f"question {n}") for n in range(2_000)])
    engine = FakeEngine(step_seconds=0.05)
    with pytest.raises(HeartbeatFailed, match="a fault of our own"):
        Worker(database, storage, settings, lambda: engine).run(threading.Event())
    assert "The heartbeat failed." in caplog.text
    batch = read_batch(database, batch_id)
    assert (batch.lease_owner, batch.deaths) == (None, 0)
    results = results_of(database, batch_id)
    assert batch.completed == len(results) == engine.starts.total() < 2_000
    assert {line.attempts for line in lines_of(database, batch_id) if line.custom_id not in results} == {0}
