"""The dashboard without a browser: every page, its headers, who may see what, and what is refused."""

import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest

from app.db.batches import transition
from app.db.keys import create_key, revoke_key
from app.db.models import Batch
from app.keeper import Keeper
from app.lifecycle import BatchStatus
from app.web.session import Sessions
from app.worker import Worker
from tests.app.api.conftest import Server, running
from tests.app.batches import input_file
from tests.app.db.jobs import set_columns
from tests.fakes import FakeEngine

EVIL = "<script>alert(1)</script>\"'&"
MODEL = "org/tiny-model"


class Browser:
    """Keeps cookies and sends a page's forms; `headers` go with every request."""

    def __init__(self, server: Server, **headers: str) -> None:
        self._server = server
        self.headers = headers
        self.cookies: dict[str, str] = {}

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self._send("GET", path, headers=headers)

    def post(self, path: str, page: httpx2.Response | None, **fields: str) -> httpx2.Response:
        """A form with the token of `page`; None: without one."""
        token = {} if page is None else {"csrf_token": token_of(page)}
        return self._send("POST", path, data=fields | token)

    def upload(self, page: httpx2.Response, content: bytes, *, token_first: bool = True) -> httpx2.Response:
        texts = [("csrf_token", token_of(page)), ("endpoint", "/v1/chat/completions")]
        parts: list[tuple[str, tuple[str | None, bytes]]] = [
            (name, (None, text.encode())) for name, text in [*texts, ("completion_window", "24h")]
        ]
        parts.insert(len(parts) if token_first else 0, ("file", ("in.jsonl", content)))
        return self._send("POST", "/new", files=parts)

    def log_in(self, key: str) -> httpx2.Response:
        return self.post("/login", self.get("/login"), key=key)

    def _send(
        self, method: str, path: str, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> httpx2.Response:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = self.headers | (headers or {}) | {"cookie": cookie}
        response = self._server.http(method, path, headers=headers, follow_redirects=False, **kwargs)
        for line in response.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
            assert "HttpOnly" in line
            assert "samesite=strict" in line.lower()
        return response


def token_of(page: httpx2.Response) -> str:
    match = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert match is not None, page.text
    return match[1]


def body(text: str, **fields: object) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 5} | fields


def run_job(server: Server, browser: Browser, bodies: list[dict]) -> str:
    """Submits a file from the page and runs it to its end; the job's path."""
    answer = browser.upload(browser.get("/new"), input_file(bodies))
    assert answer.status_code == 303, answer.text
    keeper = Keeper(server.database, server.storage, server.settings)
    keeper.tick()
    Worker(server.database, server.storage, server.settings, FakeEngine).run(
        threading.Event(), until_idle=True
    )
    keeper.tick()
    return answer.headers["location"]


def test_a_job_from_the_page_to_the_download(server: Server) -> None:
    browser = Browser(server)
    assert "No jobs yet" in browser.get("/").text
    bodies = [body(f"{EVIL} is the shared instruction here, question {n}") for n in range(12)]
    path = run_job(server, browser, [*bodies, body("x", temperature=9), body("y", unheard_of=EVIL)])
    page = browser.get(path)
    assert page.status_code == 200
    assert "Completed" in page.text
    for part in ("<svg", "Tokens per step", "What the prompts share", "Why lines failed", "× 12", "r0"):
        assert part in page.text, part
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    listed = browser.get("/")
    assert path in listed.text
    assert "14 of 14" in listed.text
    outputs = browser.get(f"{path}/output.jsonl").text.splitlines()
    assert [orjson.loads(line)["custom_id"] for line in outputs] == [f"r{n}" for n in range(12)]
    assert len(browser.get(f"{path}/error.jsonl").text.splitlines()) == 2
    assert browser.get(f"{path}/input.jsonl").content == input_file(
        [*bodies, body("x", temperature=9), body("y", unheard_of=EVIL)]
    )
    assert len(browser.get(f"{path}/results.jsonl").text.splitlines()) == 14
    retry = browser.post(f"{path}/retry", page)
    assert retry.status_code == 303
    assert retry.headers["location"] not in (path, "/")


def test_actions_and_what_the_open_page_asks_for(server: Server) -> None:
    browser = Browser(server)
    path = browser.upload(browser.get("/new"), input_file([body("q")])).headers["location"]
    page = browser.get(path)
    assert "Checking" in page.text
    state = re.search(r"seen=([\w-]+)", page.text)[1]  # type: ignore[index]
    live = browser.get(f"{path}/live?seen={state}")
    assert live.status_code == 200
    assert "HX-Refresh" not in live.headers
    assert "<html" not in live.text
    assert browser.post(f"{path}/pause", page).status_code == 303
    assert browser.get(f"{path}/live?seen={state}").headers["HX-Refresh"] == "true"
    page = browser.get(path)
    assert "Paused" in page.text
    assert browser.post(f"{path}/resume", page).status_code == 303
    assert browser.post(f"{path}/cancel", page).status_code == 303
    Keeper(server.database, server.storage, server.settings).tick()
    page = browser.get(path)
    assert "Cancelled" in page.text
    assert "hx-get" not in page.text
    refused = browser.post(f"{path}/pause", browser.get("/new"))
    assert refused.status_code == 409
    assert "Cannot pause a batch with status &#39;cancelled&#39;." in refused.text


def test_a_file_that_cannot_run_says_why(server: Server) -> None:
    browser = Browser(server)
    path = run_job(server, browser, [body("q", model=EVIL)])
    page = browser.get(path).text
    assert "The file cannot run as it is" in page
    assert "model_not_found" in page
    assert "<script>alert" not in page
    answer = browser.upload(browser.get("/new"), b"a,b,c\n1,2,3\n")
    assert answer.status_code == 400
    assert "Must be .jsonl" in answer.text
    assert 'name="csrf_token"' in answer.text


def test_headers_of_every_kind_of_answer(server: Server) -> None:
    browser = Browser(server)
    missing = ("/jobs/batch_none", "/static/none", "/jobs/x/y")
    for path in ("/", "/jobs", "/new", "/login", "/static/style.css", *missing):
        answer = browser.get(path)
        rules = answer.headers["content-security-policy"].split(";")
        csp = dict(rule.strip().split(" ", 1) for rule in rules)
        assert csp["default-src"] == csp["frame-ancestors"] == "'none'"
        assert csp["script-src"] == csp["style-src"] == "'self'"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
    # What the policy forbids is not even there.
    templates = list((Path(__file__).parents[3] / "app/web/templates").glob("*.html"))
    assert templates
    for path in templates:
        assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! src)|hx-on", path.read_text()), path
    for path in ("/v1/files", "/v1/nothing", "/healthz"):
        assert "content-security-policy" not in server.http("GET", path).headers
    assert server.http("GET", "/v1/nothing").json()["error"]["message"]


@pytest.mark.parametrize("path", ["/jobs/batch_1/cancel", "/jobs/batch_1/retry", "/login", "/logout"])
def test_a_form_without_its_token_is_refused(server: Server, path: str) -> None:
    browser, other = Browser(server), Browser(server)
    own, foreign = browser.get("/new"), other.get("/new")
    for page in (None, foreign):
        answer = browser.post(path, page)
        assert answer.status_code == 403
        assert "out of date" in answer.text
    assert browser.post(path, own).status_code != 403
    browser.headers["origin"] = "https://evil.example"
    assert browser.post(path, own).status_code == 403


def test_an_upload_without_a_good_token_stores_nothing(server: Server) -> None:
    browser, other = Browser(server), Browser(server)
    browser.get("/new")
    assert browser.upload(other.get("/new"), input_file([body("q")])).status_code == 403
    page = browser.get("/new")
    assert browser.upload(page, input_file([body("q")]), token_first=False).status_code == 403
    assert server.blob_names() == []
    assert server.client.files.list().data == []


def test_tenants_see_their_own_jobs_only(server: Server) -> None:
    with server.database.begin() as session:
        keys = {owner: create_key(session, owner) for owner in ("alice", "bob")}
    alice, bob, nobody = (Browser(server) for _ in range(3))
    assert alice.log_in(keys["alice"][1]).headers["location"] == "/"
    assert bob.log_in(keys["bob"][1]).headers["location"] == "/"
    path = alice.upload(alice.get("/new"), input_file([body("q")])).headers["location"]
    assert path in alice.get("/").text
    assert path not in bob.get("/").text
    missing = bob.get("/jobs/batch_none")
    for suffix in ("", "/live", "/input.jsonl", "/output.jsonl", "/results.jsonl"):
        answer = bob.get(path + suffix)
        assert answer.status_code == 404
        assert answer.text.replace(path[6:], "batch_none") == missing.text
    for action in ("cancel", "pause", "resume", "retry"):
        assert bob.post(f"{path}/{action}", bob.get("/new")).status_code == 404
    for page in ("/", "/jobs", "/new", path, f"{path}/input.jsonl"):
        answer = nobody.get(page)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert nobody.get("/jobs", **{"hx-request": "true"}).headers["HX-Redirect"] == "/login"
    # A cookie is no key of the API's, and its key's end is its own.
    assert server.http("GET", "/v1/files", headers={"cookie": "; ".join(alice.cookies)}).status_code == 401
    with server.database.begin() as session:
        revoke_key(session, keys["alice"][0].id)
    assert alice.get(path).status_code == 303
    assert bob.post("/logout", bob.get("/")).status_code == 303
    assert bob.get("/").status_code == 303


def test_a_wrong_key_and_a_forged_cookie(server: Server, tmp_path: Path) -> None:
    with server.database.begin() as session:
        key, text = create_key(session, "alice")
    browser = Browser(server)
    answer = browser.log_in(text[:-1] + ("A" if text[-1] != "A" else "B"))
    assert answer.status_code == 401
    assert "no API key in use" in answer.text
    assert browser.get("/").status_code == 303
    before = dict(browser.cookies)
    assert browser.log_in(text).status_code == 303
    assert browser.cookies != before  # a new session
    forger = Browser(server)
    sessions = Sessions(tmp_path / "elsewhere")
    for value in (sessions.cookie(sessions.start(key.id)), key.id, "", "a.b.c", "%E4"):
        forger.cookies = {next(iter(before)): value}
        assert forger.get("/").status_code == 303


def test_open_pages_are_for_this_machine_and_this_site(server: Server) -> None:
    for headers in ({"host": "evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = Browser(server).get("/", **headers)
        assert answer.status_code == 403
        assert "<h1>" in answer.text


def test_a_list_of_several_pages(server: Server) -> None:
    browser = Browser(server)
    page = browser.get("/new")
    paths = [browser.upload(page, input_file([body("q")])).headers["location"] for _ in range(27)]
    first = browser.get("/")
    older = re.search(r'href="(/\?after=[^"]+)"', first.text)
    assert older is not None
    second = browser.get(older[1])
    found = re.findall(r'href="(/jobs/[^"]+)"', first.text + second.text)
    assert sorted(found) == sorted(paths)
    assert browser.get("/?after=batch_none").status_code == 400


def test_an_expired_file_and_a_job_from_before_telemetry(server: Server) -> None:
    browser = Browser(server)
    path = browser.upload(browser.get("/new"), input_file([body("q")])).headers["location"]
    batch_id = urlsplit(path).path.split("/")[-1]
    with server.database.begin() as session:
        transition(session, batch_id, BatchStatus.VALIDATING, BatchStatus.FAILED)
    with server.database.read() as session:
        file_id = session.get_one(Batch, batch_id).input_file_id
    server.client.files.delete(file_id)
    set_columns(server.database, batch_id, created_at=1_000)
    page = browser.get(path)
    assert "past their time" in page.text
    assert browser.get(f"{path}/input.jsonl").status_code == 404


def test_without_its_database_a_page_says_so(server: Server) -> None:
    browser = Browser(server)
    with server.database.connect_for_writing() as connection:
        connection.exec_driver_sql("ALTER TABLE api_keys RENAME TO hidden")
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "try again later" in answer.text
    assert "<h1>" in answer.text


def test_cookies_of_https_stay_there(database, storage, tmp_path) -> None:
    with running(database, storage, tmp_path / "data") as secure:
        answer = secure.http("GET", "/new", headers={"x-forwarded-proto": "https"})
    assert "Secure" in answer.headers["set-cookie"]
