"""Find the nearest neighbour of each text by its embedding.

With `batchllm serve --model sentence-transformers/all-MiniLM-L6-v2` running:
python docs/examples/embeddings.py
"""

import json
import os
import time

import numpy as np
from openai import OpenAI

MODEL = os.environ.get("MODEL", "sentence-transformers/all-MiniLM-L6-v2")
TEXTS = [
    "The cat sleeps on the sofa.",
    "Stocks fell sharply on Tuesday.",
    "A kitten is napping on the couch.",
    "The market lost two percent this week.",
    "Add salt and stir the soup.",
    "Season the broth and mix well.",
]
URL = "/v1/embeddings"

client = OpenAI(base_url=os.environ.get("BATCHLLM_URL", "http://127.0.0.1:8000") + "/v1", api_key="unused")
lines = [
    {"custom_id": str(number), "method": "POST", "url": URL, "body": {"model": MODEL, "input": text}}
    for number, text in enumerate(TEXTS)
]
content = "\n".join(json.dumps(line) for line in lines).encode()
file = client.files.create(file=("texts.jsonl", content), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
vectors = np.empty((len(TEXTS), 384), dtype=np.float32)
for text in client.files.content(batch.output_file_id).text.splitlines():
    line = json.loads(text)
    vectors[int(line["custom_id"])] = line["response"]["body"]["data"][0]["embedding"]
alike = vectors @ vectors.T  # the model scales its vectors to length 1
np.fill_diagonal(alike, -1)
for text, number in zip(TEXTS, alike.argmax(axis=1), strict=True):
    print(f"{text:42} {TEXTS[number]}")
