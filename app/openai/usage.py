"""The token counts of an answered body."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.openai.body import Translated
from engine.request import Completion


@dataclass(frozen=True, slots=True)
class Usage:
    """prompt_tokens: of each prompt once, however many choices it has. cached_tokens: of these, the KV that
    others computed. completion_tokens: of all that was generated, shown or not."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def as_body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def usage_of(asked: Translated, completions: Sequence[Completion]) -> Usage:
    """completions: one for each of the body's requests, in their order."""
    siblings = range(0, len(completions), asked.num_samples)
    return Usage(
        prompt_tokens=sum(map(len, asked.prompts)),
        # Siblings find what the first of them computed: only that one tells what others did.
        cached_tokens=sum(
            min(one.num_cached_tokens for one in completions[start : start + asked.num_samples])
            for start in siblings
        ),
        completion_tokens=sum(len(one.output_ids) for one in completions),
    )
