"""The forms that a text may have in a body: a string, token ids, or an array of either."""

from typing import Any

import numpy as np

from app.openai.body import TranslationContext, refuse, wrong_type
from app.openai.parameters import token_id
from engine.request import TokenIds

Form = str | list[Any]  # a text, or token ids


def prompt_forms(param: str, value: object) -> list[tuple[str, Form]]:
    """A text, token ids, or an array of either: each with its place in the body."""
    if isinstance(value, str):
        return [(param, value)]
    if not isinstance(value, list):
        wrong_type(param, "a string or an array", value)
    if not value:
        refuse(f"Invalid '{param}': it must not be empty.", param, "invalid_value")
    kind = type(value[0])
    if kind not in (str, list):
        return [(param, value)]
    named = [(f"{param}[{i}]", item) for i, item in enumerate(value)]
    for name, item in named:
        if not isinstance(item, kind):
            wrong_type(name, "a string" if kind is str else "an array of token ids", item)
    return named


def prompt_ids(param: str, prompt: Form, context: TranslationContext) -> TokenIds:
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
