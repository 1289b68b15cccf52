"""What a user is told of a sequence's tokens: their bytes, their places in the text, their chances."""

from collections.abc import Sequence
from typing import Protocol

from engine.request import TokenIds, TokenLogprob
from engine.scheduling.batch import RowLogprobs
from engine.text.detokenizer import Decoder, IncrementalDetokenizer


class TokenSpeller(Decoder, Protocol):
    def token_bytes(self, token_id: int, /) -> bytes: ...


def token_logprobs(
    speller: TokenSpeller, output_ids: TokenIds, recorded: Sequence[RowLogprobs]
) -> tuple[TokenLogprob, ...]:
    """One for each output token. `offset`: characters of the text that were complete before the token."""
    detokenizer, offset = IncrementalDetokenizer(speller), 0
    tokens = []
    for token_id, row in zip(output_ids.tolist(), recorded, strict=True):
        top = zip(map(speller.token_bytes, row.top_ids.tolist()), row.top.tolist(), strict=True)
        tokens.append(TokenLogprob(speller.token_bytes(token_id), row.logprob, tuple(top), offset))
        offset += len(detokenizer.push(token_id))
    return tuple(tokens)
