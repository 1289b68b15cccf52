"""The token counts of a response body."""

from typing import Any

from engine.request import Completion


def usage_body(completion: Completion) -> dict[str, Any]:
    num_output_tokens = len(completion.output_ids)
    return {
        "prompt_tokens": completion.num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": completion.num_prompt_tokens + num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.num_cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
