"""Take fields out of texts: every answer is JSON of the schema, whatever the model would rather say.

With `batchllm serve` running: python docs/examples/structured_extraction.py
"""

import json
import os
import time

from openai import OpenAI

MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "city": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "city", "age"],
    "additionalProperties": False,
}
TEXTS = [
    "Maria Lopez, 34, has lived in Madrid since she was a child.",
    "At 71, John Smith still runs his bakery in Leeds.",
    "Yuki Tanaka moved to Osaka last year, when she was 25.",
]
URL = "/v1/chat/completions"
RULES = "Extract the name, the city and the age of the person in the text as JSON."


def body(text: str) -> dict:
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": text}]
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    return {"model": MODEL, "messages": messages, "response_format": wanted, "max_tokens": 80}


client = OpenAI(base_url=os.environ.get("BATCHLLM_URL", "http://127.0.0.1:8000") + "/v1", api_key="unused")
lines = [
    {"custom_id": str(number), "method": "POST", "url": URL, "body": body(text)}
    for number, text in enumerate(TEXTS)
]
content = "\n".join(json.dumps(line) for line in lines).encode()
file = client.files.create(file=("people.jsonl", content), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
for text in client.files.content(batch.output_file_id).text.splitlines():
    line = json.loads(text)
    person = json.loads(line["response"]["body"]["choices"][0]["message"]["content"])
    print(f"{person['name']}, {person['age']}, {person['city']}")
