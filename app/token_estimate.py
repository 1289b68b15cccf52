"""How many tokens a request may take at most, told from its body alone: there is no tokenizer here."""

from typing import Any

BYTES_PER_TOKEN = 3  # of a line; English has about four, other languages fewer
UNBOUNDED_OUTPUT_TOKENS = 4_096  # of a chat that names no bound, where the service has no default either
_COMPLETION_OUTPUT_TOKENS = 16  # the endpoint's own default
_MAX_CHOICES = 128
_MAX_OUTPUT_TOKENS = 2**31


def estimated_tokens(
    num_bytes: int, body: dict[str, Any], endpoint: str, default_max_tokens: int | None
) -> int:
    """Of a line of `num_bytes`: its prompts, and for each of its answers all the tokens that it may have.

    What is wrong with a value is said when the line is to run; here it counts as if it were not there.
    """
    num_prompt_tokens = -(-num_bytes // BYTES_PER_TOKEN)
    names: tuple[str, ...]
    if endpoint == "/v1/chat/completions":
        default = default_max_tokens or UNBOUNDED_OUTPUT_TOKENS
        names, num_prompts = ("max_completion_tokens", "max_tokens"), 1
    elif endpoint == "/v1/completions":
        default, names, num_prompts = _COMPLETION_OUTPUT_TOKENS, ("max_tokens",), _num_prompts(body)
    else:
        return num_prompt_tokens  # no text comes out
    num_choices = max(_number(body, "n", 1, _MAX_CHOICES), _number(body, "best_of", 1, _MAX_CHOICES))
    max_tokens = max(_number(body, name, 0, _MAX_OUTPUT_TOKENS) for name in names) or default
    return num_prompt_tokens + num_prompts * num_choices * max_tokens


def _number(body: dict[str, Any], name: str, default: int, largest: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return default
    return min(value, largest)


def _num_prompts(body: dict[str, Any]) -> int:
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
