"""A batch whose lines ask for formats, through the worker and a real engine on a tiny model."""

import json
import threading
from pathlib import Path

from app.db.session import Database
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from tests.app.batches import batch_to_run, chat, read_batch, results_of
from tests.engine.runs import tiny_engine

DEAD_END = r'start: "a" /[^\s\S]/'  # nobody sees it before the output is there


def test_each_line_has_its_format_or_its_error(
    database: Database, storage: Storage, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    bodies = [
        chat("free"),
        chat("held", max_tokens=100, guided_json={"enum": [{"a": 1}, "b"]}),
        chat("dead end", guided_grammar=DEAD_END),
        chat("impossible", guided_json={"type": "integer", "minimum": 2, "maximum": 1}),
        chat("too short", guided_regex="[a-z]{30}"),
    ]
    batch_id = batch_to_run(database, storage, bodies)
    settings = Settings(data_dir=tmp_path / "data", model_name="m")
    engine = tiny_engine(tiny_llama_dir)
    Worker(database, storage, settings, lambda: engine).run(threading.Event(), until_idle=True)
    results = [results_of(database, batch_id)[f"r{index}"]["response"] for index in range(len(bodies))]
    assert [result["status_code"] for result in results] == [200, 200, 500, 400, 200]
    assert json.loads(results[1]["body"]["choices"][0]["message"]["content"]) in ({"a": 1}, "b")
    assert results[2]["body"]["error"]["code"] == "grammar_failed"
    assert results[3]["body"]["error"]["param"] == "guided_json"
    assert results[4]["body"]["choices"][0]["finish_reason"] == "length"
    batch = read_batch(database, batch_id)
    assert (batch.completed, batch.failed) == (3, 2)
