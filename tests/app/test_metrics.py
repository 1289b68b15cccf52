"""/metrics: what the database and the workers say, on a port of its own."""

import threading

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app.api.deps import Service
from app.api.operations import create_ops_app
from app.db.session import Database
from app.main import create_app
from app.metric_names import COUNTERS, GAUGES, HISTOGRAMS
from app.metrics import HttpFigures
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from tests.app.batches import batch_to_run, chat
from tests.fakes import FakeEngine


def scrape(
    database: Database, storage: Storage, settings: Settings, http: HttpFigures | None = None
) -> dict[str, dict[str, float]]:
    """Values by sample name, then by the values of their labels."""
    service = Service(settings, database, storage, started_at=0)
    with TestClient(create_ops_app(service, http or HttpFigures())) as client:
        text = client.get("/metrics").text
    values: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            values.setdefault(sample.name, {})[",".join(sample.labels.values())] = sample.value
    return values


def test_a_worker_tells_its_figures(database: Database, storage: Storage, settings: Settings) -> None:
    batch_to_run(database, storage, [chat("q" * 20) for _ in range(10)])
    seen: dict[str, dict[str, float]] = {}
    engine = FakeEngine(step_seconds=0.01)
    stop = threading.Event()
    worker = Worker(database, storage, settings, lambda: engine)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        while seen.get("batchllm_worker_lines_completed_total", {}) == {} or (
            next(iter(seen["batchllm_worker_lines_completed_total"].values())) < 10
        ):
            assert thread.is_alive()
            stop.wait(0.2)
            seen = scrape(database, storage, settings)
    finally:
        stop.set()
        thread.join()
    of_worker = {name: next(iter(values.values())) for name, values in seen.items() if "_worker_" in name}
    assert of_worker["batchllm_worker_requests_finished_total"] == 10
    assert of_worker["batchllm_worker_output_tokens_total"] == engine.stats.output_tokens == 50
    assert of_worker["batchllm_worker_prompt_tokens_computed_total"] == engine.stats.prompt_tokens
    assert of_worker["batchllm_worker_kv_bytes"] == engine.kv_tokens
    assert of_worker["batchllm_worker_step_seconds_count"] == engine.stats.steps == 3
    assert of_worker["batchllm_worker_step_seconds_sum"] >= 0.03
    assert seen["batchllm_workers"] == {"": 1}
    told = {name.removeprefix("batchllm_worker_") for name in of_worker}
    assert {f"{name}_total" for name in COUNTERS} | set(GAUGES) <= told
    assert {f"{name}_bucket" for name in HISTOGRAMS} <= told
    assert "batchllm_worker_kv_bytes" not in scrape(database, storage, settings)  # it has signed off


def test_what_the_queue_holds(database: Database, storage: Storage, settings: Settings) -> None:
    batch_to_run(database, storage, [chat("a"), chat("b")])
    values = scrape(database, storage, settings)
    assert values["batchllm_batches"]["in_progress"] == 1
    assert values["batchllm_batches"]["completed"] == 0
    assert values["batchllm_batches_waiting"] == {"": 1}
    assert values["batchllm_lines"] == {"waiting": 2, "completed": 0, "failed": 0}
    assert values["batchllm_leases"] == {"held": 0, "overdue": 0}
    assert values["batchllm_workers"] == {"": 0}
    assert values["batchllm_storage_free_bytes"][""] > 0


def test_without_a_database(storage: Storage, settings: Settings) -> None:
    values = scrape(Database("postgresql://nobody@127.0.0.1:9/none"), storage, settings)
    assert values["batchllm_database_up"] == {"": 0}
    assert "batchllm_lines" not in values


def test_answers_are_counted(database: Database, storage: Storage, settings: Settings) -> None:
    http = HttpFigures()
    with TestClient(create_app(settings, database, storage, http=http)) as client:
        client.get("/healthz")
        client.get("/v1/nothing", headers={"host": "localhost"})
        client.request("BREW", "/healthz")
    counted = scrape(database, storage, settings, http)["batchllm_http_requests_total"]
    assert counted["GET,200"] == 1
    assert counted["GET,404"] == 1
    assert [key for key in counted if key.startswith("other,")]


@pytest.mark.parametrize("path", ["/v1/batches", "/openapi.json", "/"])
def test_the_port_of_operations_serves_nothing_else(
    database: Database, storage: Storage, settings: Settings, path: str
) -> None:
    with TestClient(create_ops_app(Service(settings, database, storage, 0), HttpFigures())) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get(path).status_code == 404
