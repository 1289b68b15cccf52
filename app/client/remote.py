"""The service from outside, over HTTP: what the commands for jobs ask of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx2
import orjson

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_COPY_BYTES = 1 << 20

Json = dict[str, Any]


class Refused(Exception):
    """The service said no; the message is for the user."""


class Unreachable(Exception):
    """Nobody answers; the message is for the user. Later it may be otherwise."""


class Remote:
    """One service and the key to it. Every method raises Refused and Unreachable.

    Plain HTTP and not the openai SDK: pausing, retrying and results so far are not in the SDK, and it takes a
    second to import.
    """

    def __init__(self, url: str, key: str | None) -> None:
        """url: with or without /v1 at its end."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"'{url}' is no address of a service: write it like http://127.0.0.1:8000.")
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=_TIMEOUT,
            trust_env=parts.hostname not in _LOOPBACK,  # this machine is not behind a proxy
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Json:
        return self._json("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Json | None = None) -> Json:
        return self._json("POST", path, json=body)

    def upload(self, path: Path) -> Json:
        """A new File; the file is streamed."""
        with path.open("rb") as content:
            return self._json(
                "POST", "/v1/files", data={"purpose": "batch"}, files={"file": (path.name, content)}
            )

    def batch(self, batch_id: str) -> Json:
        return self.get(f"/v1/batches/{batch_id}")

    def download(self, path: str, target: BinaryIO, **params: str) -> int:
        """Write the answer's body into `target`; how many bytes."""
        num_bytes = 0
        with self._translated(), self._http.stream("GET", path, params=params) as answer:
            if answer.is_error:
                answer.read()
                raise Refused(_reason(answer))
            for chunk in answer.iter_bytes(_COPY_BYTES):
                num_bytes += target.write(chunk)
        return num_bytes

    def batches(self, limit: int, status: str | None) -> Iterator[Json]:
        """The newest `limit` batches, page by page."""
        after = None
        while limit > 0:
            page = self.get("/v1/batches", limit=min(limit, 100), status=status, after=after)
            yield from page["data"]
            limit -= len(page["data"])
            if not page["has_more"]:
                return
            after = page["last_id"]

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        with self._translated():
            answer = self._http.request(method, path, **arguments)
        if answer.is_error:
            raise Refused(_reason(answer))
        try:
            value = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise Refused(f"{self.url} does not answer like BatchLLM: check the address.")
        return value

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TransportError as error:
            raise Unreachable(
                f"No service answers at {self.url} ({str(error) or type(error).__name__}): start one with "
                "'batchllm serve', or name another with --url or BATCHLLM_URL."
            ) from error


def _reason(answer: httpx2.Response) -> str:
    try:
        said = str(orjson.loads(answer.content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = f"The service answered {answer.status_code}."
    hint = " Give a key with --key or BATCHLLM_API_KEY." if answer.status_code == 401 else ""
    return said + hint
