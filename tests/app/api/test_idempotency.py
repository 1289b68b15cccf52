"""Idempotency-Key on files, uploads and batches: one object a key, whatever is repeated and however."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from sqlalchemy import select, update

from app.db.idempotency import forget_keys
from app.db.models import IdempotencyKey
from tests.app.api import test_batches, test_uploads
from tests.app.api.conftest import Server
from tests.app.api.test_errors import error_of
from tests.app.api.test_files import LINES

# Makes an object under a key; the last argument varies what is asked for.
Make = Callable[[Server, str, bool], Any]


def make_file(server: Server, key: str, other: bool = False) -> Any:
    return server.client.files.create(
        file=("in.jsonl", LINES + b"\n" * other), purpose="batch", extra_headers={"Idempotency-Key": key}
    )


def make_upload(server: Server, key: str, other: bool = False) -> Any:
    return test_uploads.begin(server, 2 + other, extra_headers={"Idempotency-Key": key})


def make_batch(server: Server, key: str, other: bool = False) -> Any:
    window = "25h" if other else "24h"
    return test_batches.create(server, completion_window=window, extra_headers={"Idempotency-Key": key})


ALL = pytest.mark.parametrize("make", [make_file, make_upload, make_batch])


def age_keys(server: Server) -> None:
    with server.database.begin() as session:
        session.execute(update(IdempotencyKey).values(expires_at=1_000))


@ALL
def test_a_repeated_request_gets_the_first_object(server: Server, make: Make) -> None:
    first = make(server, "k1", False)
    kept = server.blob_names()
    assert make(server, "k1", False) == first
    assert server.blob_names() == kept
    assert make(server, "k2", False).id != first.id


@ALL
def test_another_request_under_the_key_is_a_conflict_after_one_request(server: Server, make: Make) -> None:
    first = make(server, "k", False)
    kept = server.blob_names()
    server.requests.clear()
    with pytest.raises(openai.ConflictError) as caught:
        make(server, "k", True)
    assert caught.value.code == "idempotency_key_reused"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(server.requests) == 1
    assert server.blob_names() == kept
    assert make(server, "k", False) == first


def test_a_key_is_good_for_one_kind_of_object(server: Server) -> None:
    make_file(server, "k")
    with pytest.raises(openai.ConflictError):
        make_batch(server, "k")


@ALL
def test_equal_requests_at_once_make_one_object(server: Server, make: Make) -> None:
    ready = threading.Barrier(6)

    def together(_: int) -> Any:
        ready.wait()
        return make(server, "k", False)

    with ThreadPoolExecutor(6) as pool:
        assert len({made.id for made in pool.map(together, range(6))}) == 1
    assert len(server.blob_names()) == (make is make_file)


def test_different_requests_at_once(server: Server) -> None:
    """Three of each kind: those of one kind share an object, the others are refused."""
    ready = threading.Barrier(6)

    def together(number: int) -> str | None:
        ready.wait()
        try:
            return str(make_batch(server, "k", number % 2 == 1).id)
        except openai.ConflictError:
            return None

    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(together, range(6)))
    assert {ids[0:6:2].count(None), ids[1:6:2].count(None)} == {0, 3}
    assert len(set(ids)) == 2


def test_a_refused_request_leaves_its_key_free(server: Server) -> None:
    headers = {"Idempotency-Key": "k"}
    with pytest.raises(openai.BadRequestError):
        test_batches.create(server, completion_window="never", extra_headers=headers)
    with pytest.raises(openai.BadRequestError):
        server.client.files.create(file=("a.jsonl", b""), purpose="batch", extra_headers=headers)
    assert make_file(server, "k").id.startswith("file-")


def test_what_was_deleted_is_made_anew(server: Server) -> None:
    first = make_file(server, "k")
    server.client.files.delete(first.id)
    second = make_file(server, "k")
    assert second.id != first.id
    assert make_file(server, "k") == second


def test_a_completed_upload_comes_with_its_file(server: Server) -> None:
    upload = make_upload(server, "k")
    part = server.client.uploads.parts.create(upload.id, data=b"{}")
    done = server.client.uploads.complete(upload.id, part_ids=[part.id])
    assert make_upload(server, "k") == done


@ALL
def test_keys_are_forgotten_in_time(server: Server, make: Make) -> None:
    first = make(server, "k", False)
    age_keys(server)
    assert make(server, "k", True).id != first.id
    age_keys(server)
    with server.database.begin() as session:
        assert forget_keys(session) == 1
        assert session.scalars(select(IdempotencyKey)).all() == []


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
def test_keys_that_are_refused(shared_server: Server, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    body = {"input_file_id": "f", "endpoint": "/v1/completions", "completion_window": "24h"}
    error = error_of(shared_server, "POST", "/v1/batches", 400, json=body, headers=headers)
    assert (error["param"], error["code"]) == ("Idempotency-Key", "invalid_value")
