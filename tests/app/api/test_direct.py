"""Direct requests through the SDK, answered by a worker with a fake engine, on SQLite and Postgres."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from sqlalchemy import select, update

from app.api.bodies import MAX_PRIORITY
from app.db.direct import DIRECT_PRIORITY
from app.db.models import Batch, RequestLine
from app.db.session import Database
from app.db.workers import give_sign
from app.metrics import HttpFigures, registry
from app.storage import Storage
from app.worker import Worker
from tests.app.api.conftest import Server, running
from tests.app.batches import batch_to_run, chat, read_batch, results_of
from tests.app.test_worker import wait_until
from tests.fakes import FakeEngine

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "abc"}]


@pytest.fixture
def serve(database: Database, storage: Storage, tmp_path: Path) -> Callable[..., Any]:
    return lambda **changes: running(database, storage, tmp_path / "data", model_name="m", **changes)


@pytest.fixture
def api(serve: Callable[..., Any]) -> Iterator[Server]:
    with serve() as server:
        yield server


@contextmanager
def working(server: Server, engine: FakeEngine) -> Iterator[threading.Thread]:
    """A worker in a thread, once it is ready."""
    stop = threading.Event()
    worker = Worker(server.database, server.storage, server.settings, lambda: engine)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: "worker_" in str(rows(server.database, "workers")))
        yield thread
    finally:
        stop.set()
        thread.join()


def rows(database: Database, table: str) -> list[Any]:
    with database.read() as session:
        return list(session.connection().exec_driver_sql(f"SELECT * FROM {table}"))


def claim_readiness(server: Server) -> None:
    """As if there were a worker."""
    with server.database.begin() as session:
        give_sign(session, "worker_none", ["m"])


def check_no_trace(server: Server) -> None:
    wait_until(lambda: not rows(server.database, "batches"))
    for table in ("files", "request_lines", "line_results", "batch_telemetry"):
        assert not rows(server.database, table), table
    wait_until(lambda: not server.blob_names())


def test_each_endpoint_answers_as_in_a_batch(api: Server) -> None:
    client = api.client.with_options(max_retries=0)
    with working(api, FakeEngine()):
        answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=5, n=2)
        assert [choice.message.content for choice in answer.choices] == [">tnat"] * 2
        assert answer.usage is not None
        assert (answer.usage.completion_tokens, answer.model) == (10, "m")
        text = client.completions.create(model="m", prompt=["abc", "xy"])
        assert [choice.text for choice in text.choices] == ["cba", "yx"]
        response = client.responses.create(model="m", input="abc", max_output_tokens=16)
        assert response.output_text == ">tnatsissa<cba>r"
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="m", messages=MESSAGES, temperature=9)
        assert (refused.value.param, refused.value.code) == ("temperature", "invalid_value")
    check_no_trace(api)
    with working(api, FakeEngine(embedding_size=3)):
        vectors = client.embeddings.create(model="m", input=["abc", "xy"]).data
        assert np.allclose(vectors[0].embedding, np.array([97, 98, 99]) / np.linalg.norm([97, 98, 99]))
        raw = api.http("POST", "/v1/embeddings", json={"model": "m", "input": "abc"}).json()
        assert raw["data"][0]["embedding"] == pytest.approx(vectors[0].embedding)
        scores = api.http("POST", "/v1/score", json={"model": "m", "text_1": "abc", "text_2": ["abc"]}).json()
        assert scores["data"][0]["score"] == pytest.approx(1)
        ranks = api.http("POST", "/v1/rerank", json={"model": "m", "query": "a", "documents": ["a", "b"]})
        assert ranks.status_code == 200
    check_no_trace(api)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"stream": True, "messages": MESSAGES}, 400, "unsupported_value", "stream"),
        ({"messages": MESSAGES, "model": "other"}, 404, "model_not_found", "model"),
        ({"messages": MESSAGES, "model": 7}, 400, "invalid_type", "model"),
        ({}, 400, "invalid_request", "messages"),
        ({"messages": MESSAGES}, 503, None, None),  # no worker lives
        ({"messages": "x" * (3 << 20)}, 413, None, None),
    ],
)
def test_what_is_refused_at_once(
    shared_server: Server, body: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    response = shared_server.http("POST", CHAT, json={"model": "org/tiny-model"} | body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error.keys() == {"message", "type", "param", "code"}


def test_a_direct_request_goes_before_a_batch_and_nobody_sees_it(api: Server) -> None:
    batch_id = batch_to_run(api.database, api.storage, [chat(f"question {n}") for n in range(3_000)])
    with working(api, FakeEngine(per_step=2, step_seconds=0.01)):
        wait_until(lambda: read_batch(api.database, batch_id).completed > 0)
        answer = api.client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=5)
        assert answer.choices[0].message.content == ">tnat"
        assert read_batch(api.database, batch_id).completed < 3_000
    assert DIRECT_PRIORITY > MAX_PRIORITY


def test_while_one_waits_no_list_shows_it_and_more_are_refused(serve: Callable[..., Any]) -> None:
    with serve(max_direct_requests=1) as server, ThreadPoolExecutor(1) as pool:
        claim_readiness(server)
        client = server.client.with_options(max_retries=0)
        waiting = pool.submit(client.chat.completions.create, model="m", messages=MESSAGES)
        wait_until(lambda: rows(server.database, "batches"))
        with server.database.read() as session:
            batch_id, file_id = session.execute(select(Batch.id, Batch.input_file_id)).one()
        assert not client.batches.list().data
        assert not client.files.list().data
        for path in (f"/v1/batches/{batch_id}", f"/v1/files/{file_id}", f"/v1/batches/{batch_id}/results"):
            assert server.http("GET", path).status_code == 404
        assert server.http("DELETE", f"/v1/files/{file_id}").status_code == 404
        assert server.http("POST", f"/v1/batches/{batch_id}/cancel").status_code == 404
        metrics = registry(server.database, server.storage, HttpFigures())
        assert metrics.get_sample_value("batchllm_batches", {"status": "in_progress"}) == 0

        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address) as connection:  # its body never comes
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: 99\r\n\r\n".encode())
            answer = connection.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 429 ")
        assert "retry-after: 1" in answer
        with working(server, FakeEngine()):
            assert waiting.result().choices[0].message.content
        check_no_trace(server)


def test_a_client_that_goes_away_takes_its_request_with_it(api: Server) -> None:
    engine = FakeEngine(per_step=0, step_seconds=0.01)  # it never answers
    with working(api, engine):
        client = api.client.with_options(max_retries=0, timeout=1)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="m", messages=MESSAGES)
        check_no_trace(api)
        wait_until(lambda: not engine.has_work)


def test_an_answer_that_takes_too_long_is_a_504(serve: Callable[..., Any]) -> None:
    with serve(direct_seconds=1) as server:
        claim_readiness(server)
        with pytest.raises(openai.InternalServerError) as late:
            server.client.with_options(max_retries=0).completions.create(model="m", prompt="abc")
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        assert late.value.response.headers["x-should-retry"] == "true"
        check_no_trace(server)


def test_a_request_that_ends_the_worker_runs_once(api: Server) -> None:
    def end() -> None:
        raise RuntimeError("the fake device broke")

    batch_id = batch_to_run(api.database, api.storage, [chat("question")])
    with api.database.begin() as session:  # a line that has to be alone, were the direct request not first
        session.execute(update(RequestLine).values(attempts=3))
        session.execute(update(Batch).values(deaths=3))
    with ThreadPoolExecutor(1) as pool:
        claim_readiness(api)
        body = {"model": "m", "messages": [{"role": "user", "content": "poison"}]}
        waiting = pool.submit(api.http, "POST", CHAT, json=body)
        wait_until(lambda: len(rows(api.database, "batches")) == 2)
        engine = FakeEngine(poison=b"poison", on_poison=end)
        with pytest.raises(RuntimeError):
            Worker(api.database, api.storage, api.settings, lambda: engine).run(threading.Event())
        assert len(engine.in_engine) == 1
        Worker(api.database, api.storage, api.settings, FakeEngine).run(threading.Event(), until_idle=True)
        response = waiting.result()
    assert (response.status_code, response.json()["error"]["code"]) == (500, "worker_died")
    assert response.headers["x-should-retry"] == "false"
    assert results_of(api.database, batch_id)["r0"]["response"]["status_code"] == 200
