"""The masks of a step's rows that have a grammar, computed beside the model's step."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

from engine.request import TokenIds
from engine.scheduling.batch import SpecialRow, StepBatch, TokenMasks
from engine.text.grammar import Grammars, is_stuck

# To choose among so many costs little beside a whole vocabulary; what JSON has outside of strings are fewer.
FEW = 1024


@dataclass(slots=True)
class _Output:
    """A running request's output, followed through its grammar up to `num_tokens`."""

    matcher: LLMatcher
    num_tokens: int = 0

    def follow(self, output_ids: TokenIds) -> None:
        self.matcher.consume_tokens(output_ids[self.num_tokens :].tolist())
        self.num_tokens = len(output_ids)


class TokenMasker:
    """Follows the outputs of running requests in a thread of its own.

    A step's masks are begun before the model computes it, and waited for when its tokens are chosen. An
    output is followed from where its last mask left it; one that is new here, from its beginning.
    """

    def __init__(self, grammars: Callable[[], Grammars]) -> None:
        """grammars: called when the first grammar comes, since to prepare them costs a moment."""
        self._failures: dict[int, str] = {}
        self._grammars = grammars
        self._thread: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None
        self._outputs: dict[int, _Output] = {}

    def begin(self, batch: StepBatch) -> StepBatch:
        """The batch with its masks on their way, if it needs any."""
        rows = [row for row in batch.special if row.sampling.grammar is not None]
        if not rows:
            return batch
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        return replace(batch, masks=self._thread.submit(self._masks, batch, rows).result)

    def end(self, request_id: int) -> str | None:
        """Forgets a request's output. Returns why it ended where its grammar allows no end, if it did."""
        self._outputs.pop(request_id, None)
        return self._failures.pop(request_id, None)

    def _masks(self, batch: StepBatch, rows: Sequence[SpecialRow]) -> TokenMasks:
        grammars = self._grammars()
        if self._executor is None:
            self._executor = LLExecutor()
        outputs = {int(batch.request_ids[row.index]): self._output(batch, row, grammars) for row in rows}
        self._outputs.update(outputs)
        words = np.zeros((len(rows), grammars.num_bytes // 4), dtype=np.int32)
        matchers = [(output.matcher, place) for place, output in enumerate(outputs.values())]
        fill_next_token_bitmask_par(self._executor, matchers, words)
        allowed = words.view(np.uint8)
        allowed &= grammars.usable
        for mask, row, (request_id, output) in zip(allowed, rows, outputs.items(), strict=True):
            if is_stuck(output.matcher) or not mask.any():
                self._failures[request_id] = output.matcher.get_error() or "no token of the model fits"
                mask[:] = grammars.ending
            elif len(row.banned_ids):
                _ban(mask, row.banned_ids)
        num_allowed = np.bitwise_count(allowed).sum(axis=1, dtype=np.int64)
        return TokenMasks(
            row={row.index: place for place, row in enumerate(rows)},
            allowed=allowed,
            few={
                rows[place].index: _ids(allowed[place])
                for place in np.flatnonzero(num_allowed <= FEW).tolist()
            },
        )

    def _output(self, batch: StepBatch, row: SpecialRow, grammars: Grammars) -> _Output:
        grammar = row.sampling.grammar
        assert grammar is not None
        output = self._outputs.get(int(batch.request_ids[row.index]))
        if output is None:
            output = _Output(grammars.matcher(grammar))
        output.follow(row.output_ids)
        return output


def _ids(mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    return np.flatnonzero(np.unpackbits(mask, bitorder="little")).astype(np.int32)


def _ban(mask: NDArray[np.uint8], token_ids: TokenIds) -> None:
    """Takes tokens out of a mask, unless there are no others: an output that is complete has to end."""
    before = mask.copy()
    token_ids = token_ids[token_ids < len(mask) * 8]
    np.bitwise_and.at(mask, token_ids // 8, ~(1 << token_ids % 8).astype(np.uint8))
    if not mask.any():
        mask[:] = before
