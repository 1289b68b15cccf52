"""`batchllm limits` and `batchllm usage`, as commands on one database."""

from pathlib import Path

import orjson
import pytest

from app.db.limits import limits_of
from app.db.session import Database
from app.settings import Settings, StartupError
from app.tenants.limits import clear, set_limits, show
from app.tenants.usage import show as show_usage
from tests.app.db.jobs import start_batch
from tests.app.steps import answer, claim_one
from tests.app.test_cli import batchllm, check_refusal


def test_limits_are_set_listed_and_cleared(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    url = database.url.render_as_string(hide_password=False)
    settings = Settings(database_url=url, max_stored_bytes=5_000)
    set_limits(settings, "alice", {"max_stored_bytes", "database_url"})
    with database.read() as session:
        limits = limits_of(session, Settings(), "alice")
    assert limits.max_stored_bytes == 5_000
    assert limits.max_enqueued_tokens is None
    show(Settings(database_url=url))
    assert capsys.readouterr().out.splitlines() == [
        "(all)  max_requests_per_batch=50000",
        "alice  max_stored_bytes=5000",
    ]
    clear(settings, "alice")
    with pytest.raises(StartupError, match="limits list"):
        clear(settings, "alice")
    with pytest.raises(StartupError, match="--max-stored-bytes"):
        set_limits(settings, "alice", {"database_url"})
    with pytest.raises(StartupError, match="cannot name a tenant"):
        set_limits(settings, "a b", {"max_stored_bytes"})


def test_usage_is_shown(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(database_url=database.url.render_as_string(hide_password=False))
    start_batch(database, 3)
    answer(database, claim_one(database), {"r1": True, "r2": True, "r3": False})
    show_usage(settings, None, 1, as_json=False)
    assert "default  m  3 requests  3 input tokens" in capsys.readouterr().out
    show_usage(settings, "default", 1, as_json=True)
    (row,) = orjson.loads(capsys.readouterr().out)["data"]
    assert (row["tenant"], row["model"], row["requests"], row["output_tokens"]) == ("default", "m", 3, 3)
    show_usage(settings, "alice", 1, as_json=True)
    assert orjson.loads(capsys.readouterr().out) == {"data": []}


def test_as_a_process(tmp_path: Path) -> None:
    environment = {"BATCHLLM_DATA_DIR": str(tmp_path)}
    assert batchllm("limits", "set", "alice", "--max-stored-bytes", "2KB", **environment).returncode == 0
    assert "alice  max_stored_bytes=2000" in batchllm("limits", "list", **environment).stdout
    check_refusal(batchllm("limits", "set", "alice", "--max-stored-bytes", "x", **environment), "max-stored")
