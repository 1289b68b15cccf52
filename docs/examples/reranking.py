"""Order passages by how well they fit a query, with an embedding model.

With `batchllm serve --model sentence-transformers/all-MiniLM-L6-v2` running:
python docs/examples/reranking.py
"""

import json
import os
import time

from openai import OpenAI

MODEL = os.environ.get("MODEL", "sentence-transformers/all-MiniLM-L6-v2")
PASSAGES = [
    "Water the tomatoes every morning and keep their leaves dry.",
    "The committee meets on the first Monday of the month.",
    "To reset the router, hold its button for ten seconds.",
    "Yeast dough needs two hours in a warm place before it is baked.",
    "A slow network is often cured by turning the router off and on.",
]
QUERIES = ["My internet connection is slow", "How do I grow vegetables?", "When is the next meeting?"]
URL = "/v1/rerank"

client = OpenAI(base_url=os.environ.get("BATCHLLM_URL", "http://127.0.0.1:8000") + "/v1", api_key="unused")
lines = [
    {
        "custom_id": str(number),
        "method": "POST",
        "url": URL,
        "body": {"model": MODEL, "query": query, "documents": PASSAGES, "top_n": 2},
    }
    for number, query in enumerate(QUERIES)
]
content = "\n".join(json.dumps(line) for line in lines).encode()
file = client.files.create(file=("queries.jsonl", content), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
for text in client.files.content(batch.output_file_id).text.splitlines():
    line = json.loads(text)
    print(QUERIES[int(line["custom_id"])])
    for result in line["response"]["body"]["results"]:
        print(f"    {result['relevance_score']:.2f} {PASSAGES[result['index']]}")
