"""What a body may take at most: its bytes, and all tokens of all its answers."""

from typing import Any

import pytest

from app.token_estimate import UNBOUNDED_OUTPUT_TOKENS, estimated_tokens

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("endpoint", "body", "default", "output_tokens"),
    [
        (CHAT, {"max_tokens": 7}, 50, 7),
        (CHAT, {"max_completion_tokens": 8}, 50, 8),
        (CHAT, {"max_tokens": 7, "n": 3}, 50, 21),
        (CHAT, {"n": 3}, 50, 150),
        (CHAT, {}, None, UNBOUNDED_OUTPUT_TOKENS),
        (CHAT, {"max_tokens": "many", "n": True}, 50, 50),
        (CHAT, {"max_tokens": None, "n": None}, 50, 50),
        (CHAT, {"max_tokens": -1, "n": 10**30}, 5, 128 * 5),
        (CHAT, {"max_tokens": 10**30}, 5, 2**31),
        (COMPLETIONS, {"prompt": "a"}, 50, 16),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 5, "n": 2, "best_of": 4}, 50, 40),
        (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 5}, 50, 5),
        (COMPLETIONS, {"prompt": [[1], [2]], "max_tokens": 5}, 50, 10),
        (COMPLETIONS, {"prompt": [], "max_tokens": 5}, 50, 5),
        ("/v1/embeddings", {"input": "a", "n": 5}, 50, 0),
    ],
)
def test_outputs(endpoint: str, body: dict[str, Any], default: int | None, output_tokens: int) -> None:
    assert estimated_tokens(301, body, endpoint, default) == 101 + output_tokens
