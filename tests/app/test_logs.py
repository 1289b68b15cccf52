"""The log as text and as JSON."""

import json
import os
import subprocess
import sys

CODE = """
import logging
from app.logs import start_log
start_log("worker", FORMAT, logging.INFO)
log = logging.getLogger("app.worker")
log.info("Running %s.", "batch_1", extra={"batch_id": "batch_1", "line": 7})
logging.getLogger("some.library").info("chatter")
logging.getLogger("some.library").warning("trouble")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("It failed.")
"""


def written(log_format: str) -> list[str]:
    code = CODE.replace("FORMAT", repr(log_format))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_json_is_a_line_an_event() -> None:
    running, trouble, failed = map(json.loads, written("json"))
    assert (running["event"], running["batch_id"], running["line"]) == ("Running batch_1.", "batch_1", 7)
    assert (running["level"], running["logger"], running["process"]) == ("info", "app.worker", "worker")
    assert running["timestamp"].endswith("Z")
    assert (trouble["event"], trouble["level"]) == ("trouble", "warning")
    assert "ZeroDivisionError" in failed["exception"]


def test_text_is_for_people() -> None:
    lines = written("text")
    assert lines[0].endswith(" worker: Running batch_1.")
    assert lines[1].endswith(" worker: trouble")
    assert lines[-1].startswith("ZeroDivisionError")
