"""Label reviews with a few examples in the prompt: they are the same for all, so they are computed once.

With `batchllm serve` running: python docs/examples/few_shot_labelling.py
"""

import json
import os
import time

from openai import OpenAI

MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
EXAMPLES = {
    "Arrived broken, and nobody answers my mails.": "bad",
    "Works as promised, I would buy it again.": "good",
    "The worst coffee I ever had.": "bad",
    "My children love it.": "good",
}
REVIEWS = [
    "The battery dies after an hour, a waste of money.",
    "Wonderful sound, and it was here the next day.",
    "It stopped working within a week.",
    "Great value, I am very happy with it.",
    "I want my money back, this is awful.",
    "Beautiful and well made, I love it.",
]


def body(review: str) -> dict:
    messages = [{"role": "system", "content": "Label each review as good or bad. Say that word only."}]
    for text, label in EXAMPLES.items():
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
    messages.append({"role": "user", "content": review})
    return {"model": MODEL, "messages": messages, "max_tokens": 3, "temperature": 0}


client = OpenAI(base_url=os.environ.get("BATCHLLM_URL", "http://127.0.0.1:8000") + "/v1", api_key="unused")
url = "/v1/chat/completions"
lines = [
    {"custom_id": str(number), "method": "POST", "url": url, "body": body(review)}
    for number, review in enumerate(REVIEWS)
]
content = "\n".join(json.dumps(line) for line in lines).encode()
file = client.files.create(file=("reviews.jsonl", content), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
for text in client.files.content(batch.output_file_id).text.splitlines():
    line = json.loads(text)
    answer = line["response"]["body"]["choices"][0]["message"]["content"]
    print(f"{answer.strip():6} {REVIEWS[int(line['custom_id'])]}")
saved = batch.usage.input_tokens_details.cached_tokens / batch.usage.input_tokens
print(f"{saved:.0%} of the prompt tokens were not computed again.")
