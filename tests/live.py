"""A service of real processes that many tests share, each as a tenant of its own."""

import itertools
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
from openai.types import Batch

from app.db.keys import create_key
from app.db.session import Database
from tests.service import Service

MODEL = "tiny"
CHAT = "/v1/chat/completions"
TERMINAL = {"completed", "failed", "expired", "cancelled"}
PATIENCE_SECONDS = 90.0


@dataclass(frozen=True)
class Live:
    """`batchllm serve` with a tiny model. database: the service's own, to turn its clock."""

    service: Service
    database: Database
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def key(self) -> str:
        """An API key of a tenant that nobody was before."""
        with self.database.begin() as session:
            _, key = create_key(session, f"tenant-{next(self._numbers)}")
        return key

    def client(self) -> openai.OpenAI:
        """The SDK as a new tenant."""
        return openai.OpenAI(base_url=f"{self.service.url}/v1", api_key=self.key())

    def http(self, client: openai.OpenAI, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        """A request that the SDK would not send, with its key."""
        headers = {"authorization": f"Bearer {client.api_key}"} | kwargs.pop("headers", {})
        return httpx2.request(method, self.service.url + path, headers=headers, timeout=30, **kwargs)

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """One of the processes stands still during the block."""
        process = self.process(name)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def process(self, name: str) -> psutil.Process:
        return next(child for child in self.service.children() if name in child.cmdline())


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    """A line of a chat batch: greedy, of eight tokens at most, unless `body` says otherwise."""
    messages = [
        {
            "role": "system",
            "content": "You answer in one word, whatever is asked, and never explain yourself.",
        },
        {"role": "user", "content": f"Say {custom_id}."},
    ]
    body = {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0} | body
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def submit(
    client: openai.OpenAI, lines: Sequence[dict[str, Any]] | bytes, endpoint: str = CHAT, **changes: Any
) -> Batch:
    content = lines if isinstance(lines, bytes) else as_file(lines)
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    given: Any = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": "24h"} | changes
    return client.batches.create(**given)


def as_file(lines: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


def wait_for(client: openai.OpenAI, batch: Batch, *statuses: str, num_completed: int = 0) -> Batch:
    """The batch once it is in one of `statuses`, its end by default, with so many lines answered."""
    wanted = statuses or tuple(TERMINAL)
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        batch = client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        if batch.status in wanted and batch.request_counts.completed >= num_completed:
            return batch
        assert batch.status in wanted or batch.status not in TERMINAL, batch
        assert time.monotonic() < give_up_at, batch
        time.sleep(0.05)


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output or error file by custom id; fails where one is there twice."""
    if file_id is None:
        return {}
    lines = [json.loads(one) for one in client.files.content(file_id).text.splitlines()]
    by_id = {one["custom_id"]: one for one in lines}
    assert len(by_id) == len(lines)
    return by_id


def live_on(database_url: str, data_dir: Path, model_dir: Path) -> Iterator[Live]:
    """The service, started for the generator's life; it must then stop in order."""
    settings = {
        "DATABASE_URL": database_url,
        "MODEL": str(model_dir),
        "MODEL_NAME": MODEL,
        "KV_MEMORY": "4MiB",
        "THREADS": "1",
        "WEBHOOK_PRIVATE_TARGETS": "1",
    }
    service = Service(data_dir, {f"BATCHLLM_{name}": value for name, value in settings.items()})
    database = Database(database_url)
    service.start()
    yield Live(service, database)
    assert service.stop() == 0
    database.dispose()
