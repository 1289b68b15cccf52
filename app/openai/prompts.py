"""The forms that a text may have in a body: a string, token ids, or an array of either."""

from typing import Any

import numpy as np

from app.openai.body import TranslationContext, refuse, wrong_type
from app.openai.parameters import token_id
from engine.request import TokenIds


def prompt_forms(param: str, value: object) -> list[str | list[Any]]:
    """A text, token ids, or an array of either: always as an array."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        wrong_type(param, "a string or an array", value)
    if not value:
        refuse(f"Invalid '{param}': it must not be empty.", param, "invalid_value")
    kind = type(value[0])
    if kind not in (str, list):
        return [value]
    for i, item in enumerate(value):
        if not isinstance(item, kind):
            wrong_type(f"{param}[{i}]", "a string" if kind is str else "an array of token ids", item)
    return value


def prompt_ids(param: str, prompt: str | list[Any], context: TranslationContext) -> TokenIds:
    """int32, at least one."""
    if not prompt:
        refuse(f"Invalid '{param}': it must not be empty.", param, "invalid_value")
    if isinstance(prompt, str):
        ids = context.tokenizer.encode(prompt)
        if not len(ids):
            refuse(f"Invalid '{param}': it holds no tokens.", param, "invalid_value")
        return ids
    vocab_size = context.tokenizer.vocab_size
    return np.array(
        [token_id(f"{param}[{i}]", item, vocab_size) for i, item in enumerate(prompt)], dtype=np.int32
    )
