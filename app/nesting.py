"""How deep JSON may be nested. Parsers take more than writers and `repr` do, and who sends it chooses."""

from typing import Any

MAX_LEVELS = 100  # orjson reads 1,024 levels and writes 254, in which we wrap what was sent


def is_nested_too_deep(text: bytes, value: Any) -> bool:
    """Whether more than `MAX_LEVELS` arrays and objects lie in one another in `value`, parsed from `text`."""
    if text.count(b"[") + text.count(b"{") <= MAX_LEVELS:
        return False
    level = [value]
    for _ in range(MAX_LEVELS):
        level = [inner for outer in level for inner in _members(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _members(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
