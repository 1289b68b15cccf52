"""Thousands of generated requests over the API's own description, alone and in linked steps.

No answer is a 5xx, none lies outside the description and none outside the error envelope.
"""

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from app.db.batches import transition
from app.db.session import Database
from app.keeper import Keeper
from app.lifecycle import BatchStatus as S
from app.storage import Storage
from tests.app.api.conftest import Server, running
from tests.app.api.test_batches import create
from tests.app.api.test_files import upload
from tests.app.api.test_uploads import begin
from tests.app.batches import batch_to_run, chat
from tests.app.db.jobs import start_batch
from tests.receiver import Receiver

EXAMPLES_PER_OPERATION = 26  # of what the description allows, and as many of what it does not
MIN_STEPS = 800  # in journeys along the links
JOURNEYS_PER_ROUND = 30
STEPS_PER_JOURNEY = 12
MIN_CASES = 2_000

ENDPOINT = "/v1/completions"
BODY = {"model": "org/tiny-model", "prompt": "a"}
LINE = orjson.dumps({"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": BODY}) + b"\n"
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
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy on the way to our own machine

    def send(self, case: Any) -> Any:
        try:
            response = case.call(base_url=self.url, session=self._session)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            assume(False)  # cannot even be sent
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
def kept_server(database: Database, storage: Storage, tmp_path: Path) -> Iterator[Server]:
    """With a keeper, so that batches change while they are looked at. Webhooks may go to this machine."""
    stop = threading.Event()
    with running(database, storage, tmp_path / "data", webhook_private_targets=True) as server:
        thread = threading.Thread(target=Keeper(database, storage, server.settings).run, args=[stop])
        thread.start()
        yield server
        stop.set()
        thread.join()


class Guide:
    """Leads a request to where it succeeds: chance alone sometimes never gets there."""

    def __init__(self, server: Server, webhook_url: str) -> None:
        self._server = server
        self._client = server.client
        self._webhook_url = webhook_url
        self._running_id = start_batch(server.database, 2)

    def lead(self, case: Any) -> None:
        if "model_id" in case.path_parameters:
            case.path_parameters = {"model_id": BODY["model"]}
        elif "file_id" in case.path_parameters:
            case.path_parameters = {"file_id": upload(self._server, LINE)}
        elif "upload_id" in case.path_parameters:
            self._lead_to_upload(case)
        elif "batch_id" in case.path_parameters:
            case.path_parameters = {"batch_id": self._batch_id(case.operation.path)}
        elif "webhook_endpoints" in case.operation.path and case.method != "GET":
            self.forget_endpoints()  # there may be 20 at most
        if "webhook_endpoint_id" in case.path_parameters:
            made = self._client.webhooks.create(
                name="guided", url=self._webhook_url, event_types=["batch.failed"]
            )
            case.path_parameters = {"webhook_endpoint_id": made.id}

    def forget_endpoints(self) -> None:
        for endpoint in self._client.webhooks.list():
            self._client.webhooks.delete(endpoint.id)

    def _lead_to_upload(self, case: Any) -> None:
        new = begin(self._server, len(LINE))
        case.path_parameters = {"upload_id": new.id}
        if case.operation.path.endswith("/parts"):
            case.body = {"data": LINE}
        elif case.operation.path.endswith("/complete"):
            case.body = {"part_ids": [self._client.uploads.parts.create(new.id, data=LINE).id]}

    def _batch_id(self, path: str) -> str:
        """Of a batch that an operation at `path` is possible with."""
        if path.endswith(("/pause", "/resume")):
            return self._running_id
        if not path.endswith(("/retry", "{batch_id}")):
            return create(self._server, input_file_id=upload(self._server, LINE), endpoint=ENDPOINT).id
        batch_id = batch_to_run(self._server.database, self._server.storage, [chat("a")])
        with self._server.database.begin() as session:
            for old, new in pairwise([S.IN_PROGRESS, S.CANCELLING, S.CANCELLED]):
                assert transition(session, batch_id, old, new)
        return batch_id


def run_operations(schema: Any, caller: Caller, guide: Guide) -> None:
    """Each operation by itself; every other good request is led to where it succeeds."""
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            turns = itertools.cycle([mode is GenerationMode.POSITIVE, False])

            @seed(0)
            @settings(QUIET, max_examples=EXAMPLES_PER_OPERATION)
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case: Any) -> None:
                if next(turns):  # noqa: B023 (called in this turn of the loop)
                    guide.lead(case)
                caller.judge(case, caller.send(case))

            # Nothing the description rules out can be said of an operation that any text will do for.
            with contextlib.suppress(Unsatisfiable):
                one()


def run_journeys(schema: Any, caller: Caller, guide: Guide) -> None:
    """Along the links: what one step makes, the next ones use."""

    class Journey(schema.as_state_machine()):  # type: ignore[misc]
        def call(self, case: Any, **kwargs: Any) -> Any:
            return caller.send(case)

        def validate_response(self, response: Any, case: Any, *_: Any, **kwargs: Any) -> None:
            caller.judge(case, response)

    journeys = settings(QUIET, max_examples=JOURNEYS_PER_ROUND, stateful_step_count=STEPS_PER_JOURNEY)
    num_wanted = max(caller.answers.total() + MIN_STEPS, MIN_CASES)
    for number in itertools.count():
        if caller.answers.total() >= num_wanted:
            return
        guide.forget_endpoints()
        # Hypothesis takes up an earlier journey, and finds that the server has other things by now: it ends
        # the round. What was sent until then has been judged.
        with contextlib.suppress(FlakyStrategyDefinition):
            seed(number)(Journey).run(settings=journeys)


@pytest.mark.long
def test_no_answer_is_outside_the_description(kept_server: Server, tmp_path: Path) -> None:
    schema = schemathesis.openapi.from_dict(kept_server.http("GET", "/openapi.json").json())
    caller = Caller(kept_server.url)
    with Receiver(tmp_path / "receiver", []) as receiver:
        guide = Guide(kept_server, receiver.url)
        run_operations(schema, caller, guide)
        num_alone = caller.answers.total()
        run_journeys(schema, caller, guide)
    num_cases = caller.answers.total()
    num_ok = sum(count for (_, ok), count in caller.answers.items() if ok)
    print(f"{num_alone} cases alone and {num_cases - num_alone} in linked steps, {num_ok} answered with 2xx")
    assert not caller.failures, "\n\n".join(caller.failures[:5])
    assert num_cases >= MIN_CASES
    labels = {result.ok().label for result in schema.get_all_operations()}
    assert {label for label, ok in caller.answers if ok} == labels, "an operation has never succeeded"
