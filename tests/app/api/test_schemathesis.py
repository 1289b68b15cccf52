"""Thousands of generated requests over the API's own description, alone and in linked steps.

No answer is a 5xx, none lies outside the description and none outside the error envelope. What uvicorn
refuses before our application sees it (a header that is not HTTP) has no envelope, and is no case.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from app.keeper import Keeper
from tests.app.api.conftest import Server
from tests.app.api.test_batches import create
from tests.app.api.test_files import upload, wait_until
from tests.app.api.test_uploads import begin
from tests.app.db.jobs import start_batch

EXAMPLES_PER_OPERATION = 50  # of what the description allows, and as many of what it does not
MIN_STEPS = 1_500  # in journeys along the links
JOURNEYS_PER_ROUND = 30
STEPS_PER_JOURNEY = 12
MIN_CASES = 2_000

BODY = {"model": "org/tiny-model", "prompt": "a"}
LINE = orjson.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": BODY}) + b"\n"
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
QUIET = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],  # a failure is noted, not shrunk: the server's state would not come back
    suppress_health_check=list(HealthCheck),
)

schemathesis.openapi.format("binary", st.just(LINE) | st.binary(max_size=200))


class Caller:
    """Sends cases to a server and judges the answers; counts them by operation and whether they are 2xx."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: Counter[tuple[str, bool]] = Counter()
        self.failures: list[str] = []
        self.num_refused_by_uvicorn = 0
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy on the way to our own machine

    def send(self, case: Any) -> Any:
        try:
            response = case.call(base_url=self.url, session=self._session)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            assume(False)  # cannot even be sent
        if response.status_code == 400 and response.text == "Invalid HTTP request received.":
            self.num_refused_by_uvicorn += 1
            assume(False)
        return response

    def judge(self, case: Any, response: Any) -> None:
        """Count the answer, and note it where it is not one that the description allows."""
        self.answers[case.operation.label, response.status_code < 300] += 1
        try:
            self._check(case, response)
        except (AssertionError, FailureGroup) as error:
            self.failures.append(f"{case.as_curl_command()}\n{response.status_code} {response.text}\n{error}")

    def _check(self, case: Any, response: Any) -> None:
        assert response.status_code < 500, response.text
        assert response.headers["x-request-id"][0].startswith("req_")
        if response.status_code >= 400:
            check_envelope(response.json())
        case.validate_response(response, checks=CHECKS)


def check_envelope(body: Any) -> None:
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["type"] == "invalid_request_error"
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))


@pytest.fixture
def kept_server(server: Server) -> Iterator[Server]:
    """With a keeper, so that batches change while they are looked at."""
    stop = threading.Event()
    keeper = Keeper(server.database, server.storage, server.settings)
    thread = threading.Thread(target=keeper.run, args=[stop])
    thread.start()
    yield server
    stop.set()
    thread.join()


def run_operations(schema: Any, caller: Caller) -> None:
    """Each operation by itself."""
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(QUIET, max_examples=EXAMPLES_PER_OPERATION)
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Any) -> None:
                caller.judge(case, caller.send(case))

            # Nothing the description rules out can be said of an operation that any text will do for.
            with contextlib.suppress(Unsatisfiable):
                one()


class Guide:
    """Every other time, leads a request to where it can succeed: chance alone hardly gets there."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._turns: Counter[str] = Counter()
        self._running_id = start_batch(server.database, 2)
        self._ended_id = self._cancelled_batch()

    def lead(self, case: Any) -> None:
        label = case.operation.label
        self._turns[label] += 1
        if self._turns[label] % 2:
            return
        if label in ("POST /v1/batches/{batch_id}/pause", "POST /v1/batches/{batch_id}/resume"):
            case.path_parameters = {"batch_id": self._running_id}
        elif label == "POST /v1/batches/{batch_id}/retry":
            case.path_parameters = {"batch_id": self._ended_id}
        elif label == "POST /v1/uploads/{upload_id}/complete":
            new = begin(self._server, len(LINE))
            part = self._server.client.uploads.parts.create(new.id, data=LINE)
            case.path_parameters = {"upload_id": new.id}
            case.body = {"part_ids": [part.id]}

    def _cancelled_batch(self) -> str:
        file_id = upload(self._server, LINE)
        batch = create(self._server, input_file_id=file_id, endpoint="/v1/completions")
        self._wait_for(batch.id, "in_progress")
        self._server.client.batches.cancel(batch.id)
        self._wait_for(batch.id, "cancelled")
        return batch.id

    def _wait_for(self, batch_id: str, status: str) -> None:
        wait_until(lambda: self._server.client.batches.retrieve(batch_id).status == status, 60)


def run_journeys(schema: Any, caller: Caller, guide: Guide) -> None:
    """Along the links: what one step makes, the next ones use."""

    class Journey(schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            guide.lead(case)

        def call(self, case: Any, **kwargs: Any) -> Any:
            return caller.send(case)

        def validate_response(self, response: Any, case: Any, *_: Any, **kwargs: Any) -> None:
            caller.judge(case, response)

    journeys = settings(QUIET, max_examples=JOURNEYS_PER_ROUND, stateful_step_count=STEPS_PER_JOURNEY)
    num_before = caller.answers.total()
    while caller.answers.total() < num_before + MIN_STEPS:
        # Hypothesis takes up an earlier journey, and finds that the lists it led through have grown.
        with contextlib.suppress(FlakyStrategyDefinition):
            Journey.run(settings=journeys)


@pytest.mark.long
def test_no_answer_is_outside_the_description(kept_server: Server) -> None:
    schema = schemathesis.openapi.from_dict(kept_server.http("GET", "/openapi.json").json())
    caller = Caller(kept_server.url)
    run_operations(schema, caller)
    num_alone = caller.answers.total()
    run_journeys(schema, caller, Guide(kept_server))
    num_cases = caller.answers.total()
    num_ok = sum(count for (_, ok), count in caller.answers.items() if ok)
    print(
        f"{num_alone} cases alone and {num_cases - num_alone} in linked steps, {num_ok} answered with 2xx; "
        f"{caller.num_refused_by_uvicorn} refused by uvicorn"
    )
    assert not caller.failures, "\n\n".join(caller.failures[:5])
    assert num_cases >= MIN_CASES
    labels = {result.ok().label for result in schema.get_all_operations()}
    assert {label for label, ok in caller.answers if ok} == labels, "an operation has never succeeded"
