"""What nearly everybody does with the service, by the SDK that is installed; a script against a server:

    python core_flow.py BASE_URL KEY MODEL        (prints one JSON object: what it saw)

Needs nothing but `openai`, so that it runs in a virtual environment with another version of it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import openai

ENDPOINT = "/v1/chat/completions"
TERMINAL = {"completed", "failed", "expired", "cancelled"}


def input_line(model: str, number: int, **parameters: object) -> bytes:
    messages = [{"role": "user", "content": f"question {number}"}]
    body = {"model": model, "messages": messages, "max_tokens": 8, **parameters}
    line = {"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line).encode() + b"\n"


def run(base_url: str, key: str, model: str) -> dict[str, object]:
    client = openai.OpenAI(base_url=base_url, api_key=key)
    content = b"".join(input_line(model, n) for n in range(20)) + input_line(model, 20, temperature=9)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "in.jsonl"
        path.write_bytes(content)
        file = client.files.create(file=path, purpose="batch")
        upload = client.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose="batch", part_size=1_000
        )
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == content
    batch = client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"job": "core"}
    )
    assert batch.status == "validating"
    while batch.status not in TERMINAL:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    try:
        client.batches.cancel(batch.id)
        refusal = None
    except openai.ConflictError as error:
        refusal = str(error.body["message"]) if isinstance(error.body, dict) else None
    return {
        "version": openai.__version__,
        "status": batch.status,
        "counts": batch.request_counts.to_dict() if batch.request_counts else None,
        "metadata": batch.metadata,
        "outputs": ids_in(client, batch.output_file_id),
        "errors": ids_in(client, batch.error_file_id),
        "files": len([listed.id for listed in client.files.list(limit=1)]),
        "batches": [listed.id for listed in client.batches.list(limit=1)] == [batch.id],
        "models": [model.id for model in client.models.list()],
        "refusal": refusal,
    }


def ids_in(client: openai.OpenAI, file_id: str | None) -> list[str]:
    lines = client.files.content(file_id or "").text.splitlines()
    return [json.loads(line)["custom_id"] for line in lines]


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
