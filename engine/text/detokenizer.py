"""Token ids to text, as they come."""

from collections.abc import Sequence
from typing import Protocol

# Bytes that are no whole character yet decode to this at the end of the text.
_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes: so many tokens without an end to it are not worth waiting for.
_MAX_PENDING = 64


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    special_token_ids: frozenset[int]

    def decode(self, token_ids: Sequence[int], /) -> str: ...


class IncrementalDetokenizer:
    """The text of one sequence, token by token; a character appears with its last byte.

    What was pushed joins to the decoding of all tokens, up to an incomplete character at the end.
    A token's text may depend on the one before it (a leading space, say), so each is decoded
    together with the tokens shown last:

        ids     ... | context      | pending     |
                      _context ids   _pending ids
        text          decode(context) is a start of decode(context + pending); the rest is new
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._decoder.special_token_ids:
            return ""
        self._pending.append(token_id)
        text = self._decoder.decode(self._context + self._pending)
        is_open = text.endswith(_REPLACEMENT) or len(text) <= len(self._context_text)
        if is_open and len(self._pending) < _MAX_PENDING:
            return ""
        new_text = text[len(self._context_text) :]
        self._context, self._pending = self._pending, []
        self._context_text = self._decoder.decode(self._context)
        return new_text
