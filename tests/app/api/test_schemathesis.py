"""Requests made up from the API's own description: never a 5xx, and no refusal outside the envelope.

The whole service runs: keeper, and a worker whose engine is a fake. Two thirds of the requests that need an
object are led to one that exists; the state machine follows the description's links from what an answer made.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, FlakyStrategyDefinition, Unsatisfiable
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.bodies import ENDPOINTS
from app.db.session import Database
from app.keeper import Keeper
from app.settings import Settings
from app.storage import Storage
from app.worker import Worker
from tests.app.api.conftest import Server, running
from tests.app.batches import chat, input_file
from tests.fakes import FakeEngine
from tests.receiver import Receiver

EXAMPLES = 40  # of each operation, in each of two ways
SCENARIOS = 10  # of a round of the state machine, up to STEPS requests each
STEPS = 10
LINKED = 1_000  # requests of all rounds
ROUNDS = 200  # at most
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ERROR_KEYS = {"message", "type", "param", "code"}
INPUT = input_file([chat(f"question {number}") for number in range(3)])
UPLOAD, WHOLE_FILE = "POST /v1/files", {"file": INPUT, "purpose": "batch"}
# Answered well only with what nobody makes up: a conversation, parts of an upload, a batch with failed lines.
TOO_HARD = {f"POST {path}" for path in ENDPOINTS} | {
    "POST /v1/uploads/{upload_id}/complete",
    "POST /v1/batches/{batch_id}/retry",
}
PLAN = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def server(database: Database, storage: Storage, tmp_path: Path) -> Iterator[Server]:
    """A server with everything behind it at work."""
    stop = threading.Event()
    options = Settings(data_dir=tmp_path / "data", model="m", model_name="m")
    keeper = Keeper(database, storage, options)

    def keep(stop: threading.Event) -> None:
        """All of a keeper but its webhooks, which would go to addresses that are made up."""
        while not stop.wait(0.1):
            keeper.tick()

    duties: list[Callable[[threading.Event], None]] = [
        keep,
        Worker(database, storage, options, FakeEngine).run,
    ]
    threads = [threading.Thread(target=duty, args=[stop]) for duty in duties]
    for thread in threads:
        thread.start()
    with running(
        database, storage, tmp_path / "data", model_name="m", webhook_private_targets=True
    ) as server:
        yield server
    stop.set()
    for thread in threads:
        thread.join()


def make_objects(server: Server, hook_url: str) -> Mapping[str, list[str]]:
    """Ids of new objects by the parameter that takes them; batches in several states."""
    client = server.client
    files = [client.files.create(file=("in.jsonl", INPUT), purpose="batch").id for _ in range(4)]
    uploads = []
    for _ in range(3):
        upload = client.uploads.create(
            bytes=len(INPUT), filename="in.jsonl", mime_type="application/jsonl", purpose="batch"
        )
        uploads.append(upload.id)
    client.uploads.parts.create(uploads[0], data=INPUT)
    client.uploads.cancel(uploads[1])
    batches = [
        client.batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
        ).id
        for file in [*files[:3], "file-none"]
    ]
    with suppress(openai.ConflictError):  # it may have ended already
        client.batches.cancel(batches[1])
    server.http("POST", f"/v1/batches/{batches[2]}/pause")
    for old in list(client.webhooks.list()):  # there may be 20 at most
        client.webhooks.delete(old.id)
    endpoint = client.webhooks.create(name="n", url=hook_url, event_types=["batch.failed"])
    return {
        "file_id": files,
        "upload_id": uploads,
        "batch_id": batches,
        "webhook_endpoint_id": [endpoint.id],
        "model_id": ["m"],
    }


class Judge:
    """Looks at every answer. failures: kept here, since what hypothesis cannot repeat it does not report."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.failures: list[str] = []

    def check(self, case: Any, response: Any) -> None:
        self.answers[case.operation.label, response.status_code] += 1
        try:
            assert response.headers["x-request-id"][0].startswith("req_")
            if response.status_code >= 400:
                body = response.json()
                assert set(body) == {"error"}, body
                assert set(body["error"]) == ERROR_KEYS, body
                assert response.headers["content-type"] == ["application/json"]
            case.validate_response(response, checks=CHECKS)
        except Exception as error:
            self.failures.append(f"{case.as_curl_command()}\n{response.status_code}: {error}")
            raise

    def verdict(self) -> None:
        counts: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            counts[status] += count
        print(f"{self.answers.total()} requests: {dict(counts)}")
        assert not self.failures, "\n\n".join(self.failures[:5])


@pytest.mark.long
def test_every_answer_is_as_described(server: Server, tmp_path: Path) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    judge = Judge()
    with Receiver(tmp_path / "receiver", []) as receiver:
        for operation in operations:
            objects = make_objects(server, receiver.url)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                send_many(operation, mode, objects, judge)
    judge.verdict()
    assert judge.answers.total() >= 2_000
    succeeded = {label for label, status in judge.answers if status < 300}
    expected = {operation.label for operation in operations} - TOO_HARD
    assert expected <= succeeded, expected - succeeded


def send_many(operation: Any, mode: GenerationMode, objects: Mapping[str, list[str]], judge: Judge) -> None:
    @settings(PLAN, max_examples=EXAMPLES, derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def send(case: Any, data: st.DataObject) -> None:
        names = [name for name in objects if name in (case.path_parameters or {})]
        if names and data.draw(st.integers(0, 2)):
            for name in names:
                case.path_parameters[name] = data.draw(st.sampled_from(objects[name]))
        if operation.label == UPLOAD and data.draw(st.booleans()):
            case.body = WHOLE_FILE  # of bytes made up all are refused
        judge.check(case, case.call())

    with suppress(Unsatisfiable):  # an operation that takes nothing has no wrong form
        send()


@pytest.mark.long
def test_links_lead_through_the_life_of_an_object(server: Server) -> None:
    """In rounds: what an object has become by itself since hypothesis saw it ends a round as flaky."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema = schema.exclude(path_regex="/test$")  # it would call the addresses that are made up
    judge = Judge()

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        """Files that a batch can run: of bytes made up all are refused."""
        return WHOLE_FILE if context.operation.label == UPLOAD else body

    class Machine(schema.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
            judge.check(case, response)

    plan = settings(PLAN, max_examples=SCENARIOS, stateful_step_count=STEPS)
    for number in range(ROUNDS):
        with suppress(Flaky, FlakyStrategyDefinition):
            run_state_machine_as_test(seed(number)(Machine), settings=plan)
        if judge.failures or judge.answers.total() >= LINKED:
            break
    judge.verdict()
    assert judge.answers.total() >= LINKED
    led = {label for label, status in judge.answers if "{" in label and status < 300}
    assert len(led) >= 8, f"hardly any link led to an object: {led}"
