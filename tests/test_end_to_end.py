"""The openai SDK against `batchllm serve`: three real processes, a real (tiny) model, both databases.

tests/conformance has the rest of what the SDK is to find.
"""

from tests.live import MODEL, Live, as_file, line, results, submit, wait_for


def test_a_batch_from_upload_to_download(live: Live) -> None:
    client = live.client()
    lines = [line(f"line-{number}") for number in range(40)]
    lines[7]["body"]["temperature"] = 9
    lines[9]["body"]["web_search_options"] = {}
    batch = submit(client, lines, metadata={"of": "a test"})
    assert client.files.content(batch.input_file_id).content == as_file(lines)
    batch = wait_for(client, batch)
    assert batch.status == "completed"
    assert batch.model == MODEL
    assert batch.metadata == {"of": "a test"}
    outputs, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert set(outputs) | set(errors) == {line["custom_id"] for line in lines}
    assert set(errors) == {"line-7", "line-9"}
    assert errors["line-7"]["response"]["status_code"] == 400
    assert errors["line-9"]["response"]["body"]["error"]["code"] == "unsupported_parameter"
    usages = [line["response"]["body"]["usage"] for line in outputs.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert batch.usage.input_tokens_details.cached_tokens > batch.usage.input_tokens / 2


def test_completions_take_text_and_token_ids(live: Live) -> None:
    client = live.client()
    bodies = [{"prompt": "The quick brown"}, {"prompt": [5, 6, 7, 8]}]
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": MODEL, "max_tokens": 5, "temperature": 0, "ignore_eos": True} | body,
        }
        for number, body in enumerate(bodies)
    ]
    batch = wait_for(client, submit(client, lines, "/v1/completions"))
    outputs = results(client, batch.output_file_id)
    usage = outputs["1"]["response"]["body"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 5)
    assert outputs["0"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    for custom_id, body in enumerate(bodies):  # a direct request is the same line on the same path
        alone = client.completions.create(
            model=MODEL, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}, **body
        )
        batched = outputs[str(custom_id)]["response"]["body"]["choices"]
        assert [choice.text for choice in alone.choices] == [choice["text"] for choice in batched]
