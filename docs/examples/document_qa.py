"""Several questions to each document: a document is read once, however many questions there are.

Put what is shared first: the rules, then the document, then the question.
With `batchllm serve` running: python docs/examples/document_qa.py
"""

import json
import os
import time

from openai import OpenAI

MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
RULES = "Answer the question from the document in one short sentence."
DOCUMENTS = {
    "lighthouse": "The lighthouse on Gull Rock was built in 1868 by Ada Stone. It is 42 metres high and made "
    "of granite. Its lamp burned oil until 1921, when an electric one took its place. The last keeper, Tom "
    "Reed, left in 1985. Today the tower belongs to the town of Fairhaven and is open in summer.",
    "orchard": "The orchard of the Miller family has 300 apple trees and 40 pear trees. Apples are picked in "
    "September, pears in August. Most of the fruit is pressed into juice, which is sold at the farm. The "
    "oldest tree was planted in 1932 by Ruth Miller.",
}
QUESTIONS = {
    "lighthouse": ["Who built the lighthouse?", "How high is it?", "When did the last keeper leave?"],
    "orchard": ["How many pear trees are there?", "When are apples picked?", "Who planted the oldest tree?"],
}
URL = "/v1/chat/completions"


def line(name: str, number: int, question: str) -> dict:
    messages = [
        {"role": "system", "content": RULES},
        {"role": "user", "content": f"{DOCUMENTS[name]}\n\n{question}"},
    ]
    body = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0}
    return {"custom_id": f"{name}-{number}", "method": "POST", "url": URL, "body": body}


client = OpenAI(base_url=os.environ.get("BATCHLLM_URL", "http://127.0.0.1:8000") + "/v1", api_key="unused")
lines = [line(name, n, question) for name in DOCUMENTS for n, question in enumerate(QUESTIONS[name])]
content = "\n".join(json.dumps(one) for one in lines).encode()
file = client.files.create(file=("questions.jsonl", content), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
for text in client.files.content(batch.output_file_id).text.splitlines():
    result = json.loads(text)
    name, number = result["custom_id"].split("-")
    answer = result["response"]["body"]["choices"][0]["message"]["content"]
    print(f"{QUESTIONS[name][int(number)]}\n    {answer.strip()}")
saved = batch.usage.input_tokens_details.cached_tokens / batch.usage.input_tokens
print(f"{saved:.0%} of the prompt tokens were not computed again.")
