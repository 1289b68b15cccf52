"""Whatever goes wrong, on whatever route: the envelope, a request id, and a word on repeating."""

import errno
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.db.session import Database
from app.storage import DirectoryStorage
from tests.app.api.conftest import Server, running

JSON = {"content-type": "application/json"}


def error_of(server: Server, method: str, path: str, status: int, **kwargs: object) -> dict[str, object]:
    answer = server.http(method, path, **kwargs)
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "server_error")
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return dict(error)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "path",
    ["/v1", "/v2/files", "/v1/files/a/b", "/v1/batches/x/y", "/v1//files", "/docs", "/v1/%2e%2e/x"],
)
def test_unknown_paths(shared_server: Server, method: str, path: str) -> None:
    assert "Unknown request URL" in str(error_of(shared_server, method, path, 404)["message"])


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", {"GET", "POST"}),
        ("/v1/files/x", {"GET", "DELETE"}),
        ("/v1/files/x/content", {"GET", "HEAD"}),
        ("/v1/uploads", {"POST"}),
        ("/v1/uploads/x/parts", {"POST"}),
        ("/v1/uploads/x/complete", {"POST"}),
        ("/v1/uploads/x/cancel", {"POST"}),
        ("/v1/batches", {"GET", "POST"}),
        ("/v1/batches/x", {"GET", "DELETE"}),
        ("/v1/batches/x/results", {"GET"}),
        ("/v1/batches/x/cancel", {"POST"}),
        ("/v1/models", {"GET"}),
        ("/v1/models/a/b", {"GET"}),
        ("/healthz", {"GET", "HEAD"}),
        ("/readyz", {"GET", "HEAD"}),
    ],
)
def test_methods_that_a_path_does_not_have(shared_server: Server, path: str, allowed: set[str]) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - allowed:
        error_of(shared_server, method, path, 405)
        assert set(shared_server.http(method, path).headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": NaN}', b"[" * 5_000, b'"\\ud800"']
)
def test_malformed_json(shared_server: Server, body: bytes) -> None:
    error_of(shared_server, "POST", "/v1/batches", 400, content=body, headers=JSON)


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=b", ""])
def test_wrong_content_type(shared_server: Server, content_type: str) -> None:
    headers = {"content-type": content_type}
    error_of(shared_server, "POST", "/v1/batches", 415, content=b"{}", headers=headers)


def test_a_json_body_without_end(shared_server: Server) -> None:
    error_of(shared_server, "POST", "/v1/batches", 413, content=b" " * (2 << 20), headers=JSON)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("files?limit=0", "limit"),
        ("files?limit=10001", "limit"),
        ("files?limit=x", "limit"),
        ("files?limit=", "limit"),
        ("files?order=up", "order"),
        ("files?purpose=%00", "purpose"),
        ("files?after=file-none", "after"),
        ("files?after=%00", "after"),
        ("batches?limit=0", "limit"),
        ("batches?limit=101", "limit"),
        ("batches?limit=1.5", "limit"),
        ("batches?after=batch_none", "after"),
        ("batches?after=", "after"),
    ],
)
def test_bad_query_parameters(shared_server: Server, query: str, param: str) -> None:
    error = error_of(shared_server, "GET", f"/v1/{query}", 400)
    assert (error["param"], error["code"]) == (param, "invalid_value")


@pytest.mark.parametrize(
    "name", ["%00", "x" * 5_000, "%F0%9F%98%80", "%FF", "..%2f..%2fetc%2fpasswd", "a;b", "%20"]
)
def test_ids_that_nothing_has(shared_server: Server, name: str) -> None:
    for path in (
        f"/v1/files/{name}",
        f"/v1/files/{name}/content",
        f"/v1/batches/{name}",
        f"/v1/models/{name}",
    ):
        error_of(shared_server, "GET", path, 404)
    error_of(shared_server, "DELETE", f"/v1/files/{name}", 404)
    error_of(shared_server, "POST", f"/v1/batches/{name}/cancel", 404)


def test_request_ids_differ_and_are_on_good_answers_too(shared_server: Server) -> None:
    answers = [
        shared_server.http("GET", "/v1/models"),
        shared_server.http("GET", "/healthz"),
        shared_server.http("GET", "/x"),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert (shared_server.client.models.retrieve("org/tiny-model")._request_id or "").startswith("req_")


def test_pages_elsewhere_cannot_use_the_open_port(shared_server: Server) -> None:
    port = shared_server.url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "10.0.0.1", "["):
        error_of(shared_server, "GET", "/v1/files", 403, headers={"host": host})
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]:80", "LOCALHOST:1"):
        assert shared_server.http("GET", "/v1/files", headers={"host": host}).status_code == 200
    for origin in ("https://evil.example", "null", "http://localhost:3000", "http://["):
        error_of(shared_server, "POST", "/v1/batches", 403, headers={"origin": origin})
    assert shared_server.http("GET", "/v1/files", headers={"origin": shared_server.url}).status_code == 200
    for site in ("cross-site", "same-site"):  # an image of a page elsewhere, or of another port
        error_of(shared_server, "GET", "/v1/files", 403, headers={"sec-fetch-site": site})
    for site in ("same-origin", "none"):
        assert shared_server.http("GET", "/v1/files", headers={"sec-fetch-site": site}).status_code == 200


def test_unexpected_errors(database: Database, tmp_path: Path) -> None:
    def add_routes(app: FastAPI) -> None:
        @app.api_route("/broken", methods=["GET", "POST"])
        def broken() -> None:
            raise ValueError("a secret")

        @app.post("/full")
        def full() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with running(database, DirectoryStorage(tmp_path), tmp_path, add_routes) as server:
        assert "secret" not in str(error_of(server, "GET", "/broken", 500))
        assert "x-should-retry" not in server.http("GET", "/broken").headers
        assert server.http("POST", "/broken").headers["x-should-retry"] == "false"
        assert error_of(server, "POST", "/full", 507)["type"] == "server_error"


def test_ready_is_told_apart_from_alive(server: Server) -> None:
    assert server.http("GET", "/readyz").json() == {"status": "ready"}
    with server.database.begin() as session:
        session.execute(text("DELETE FROM alembic_version"))
    assert "schema" in str(error_of(server, "GET", "/readyz", 503)["message"])
    assert server.http("GET", "/healthz").json() == {"status": "ok"}


def test_a_database_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for url in ("postgresql://nobody@127.0.0.1:1/none", f"sqlite:///{tmp_path / 'directory'}"):
        database = Database(url)
        with running(database, DirectoryStorage(tmp_path), tmp_path) as server:
            for path in ("/readyz", "/v1/files", "/v1/batches/batch_1"):
                assert error_of(server, "GET", path, 503)["type"] == "server_error"
            form = {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}
            error_of(server, "POST", "/v1/files", 503, files=form)
            assert server.blob_names() == []
            assert server.http("GET", "/healthz").status_code == 200
        database.dispose()


def test_a_database_without_tables(empty_database_url: str, tmp_path: Path) -> None:
    database = Database(empty_database_url)
    with running(database, DirectoryStorage(tmp_path), tmp_path) as server:
        for path in ("/readyz", "/v1/files", "/v1/batches/batch_1"):
            error_of(server, "GET", path, 503)
    database.dispose()
