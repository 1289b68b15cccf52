"""A model that knows nothing but the KV it can reach through a StepBatch.

It stores each row's token and position in the row's slot, then reads back what attention would read for each
row: all of the segments above, and its own segment up to itself. The next token is a function of what was
read, so any slip of the batch changes an output, and most are caught before that.
"""

import zlib

import numpy as np

from engine.request import Request
from engine.scheduling.batch import StepBatch


def next_token(history: np.ndarray, vocab_size: int) -> int:
    """The token after `history`: a hash of all of it."""
    return zlib.crc32(np.asarray(history, dtype=np.int32).tobytes()) % vocab_size


def generate(request: Request, vocab_size: int, eos_token_ids: frozenset[int]) -> list[int]:
    """What a request must come to, alone and without any scheduler."""
    history = request.prompt_ids.tolist()
    output: list[int] = []
    while len(output) < request.sampling.max_tokens:
        output.append(next_token(np.array(history + output), vocab_size))
        if output[-1] in eos_token_ids and not request.sampling.ignore_eos:
            break
    return output


class FakeModel:
    def __init__(self, num_pages: int, page_size: int, vocab_size: int) -> None:
        self.page_size = page_size
        self.vocab_size = vocab_size
        self.tokens = np.full(num_pages * page_size, -1, dtype=np.int64)
        self.positions = np.full(num_pages * page_size, -1, dtype=np.int64)

    def run(self, batch: StepBatch) -> np.ndarray:
        """int32 [S]: the next token of each sampled row."""
        check_shape(batch)
        assert len(set(batch.slots.tolist())) == batch.num_tokens, "two rows write one slot"
        self.tokens[batch.slots] = batch.token_ids
        self.positions[batch.slots] = batch.positions
        histories = [self.read(batch, row) for row in range(batch.num_tokens)]
        sampled = [next_token(histories[row], self.vocab_size) for row in batch.sample_rows.tolist()]
        return np.array(sampled, dtype=np.int32)

    def read(self, batch: StepBatch, row: int) -> np.ndarray:
        """The tokens whose KV a row attends to, itself included."""
        slots: list[int] = []
        for segment in np.flatnonzero((batch.row_start <= row) & (row < batch.subtree_end)).tolist():
            own_row = row - int(batch.row_start[segment])
            kv_len, row_count = int(batch.kv_len[segment]), int(batch.row_count[segment])
            visible = kv_len - row_count + own_row + 1 if own_row < row_count else kv_len
            pages = batch.page_ids[batch.page_start[segment] : batch.page_start[segment + 1]]
            assert len(slots) == batch.kv_position[segment], "a segment does not follow the one above it"
            for index in range(visible):
                slots.append(int(pages[index // self.page_size]) * self.page_size + index % self.page_size)
        assert self.positions[slots].tolist() == list(range(len(slots))), "KV of another position"
        assert slots[-1] == batch.slots[row], "a row does not see itself last"
        assert len(slots) == batch.positions[row] + 1
        return self.tokens[slots]


def check_shape(batch: StepBatch) -> None:
    """Asserts what the docstring of StepBatch promises of dtypes, lengths and order."""
    for name in ("token_ids", "positions", "slots", "row_start", "row_count", "subtree_end", "kv_len"):
        assert getattr(batch, name).dtype == np.int32, name
    for name in ("kv_position", "page_start", "page_ids", "sample_rows", "top_k", "num_generated"):
        assert getattr(batch, name).dtype == np.int32, name
    assert batch.request_ids.dtype == np.int64
    assert batch.temperature.dtype == batch.top_p.dtype == batch.min_p.dtype == np.float32
    assert batch.seeds.dtype == np.uint64
    assert len(batch.positions) == len(batch.slots) == batch.num_tokens == batch.row_count.sum()
    assert (batch.row_start == np.cumsum(batch.row_count) - batch.row_count).all()
    assert (batch.subtree_end > batch.row_start).all(), "a segment without rows below"
    assert batch.page_start[0] == 0
    assert batch.page_start[-1] == len(batch.page_ids)
    assert (np.diff(batch.sample_rows) > 0).all()
    lengths = {len(batch.request_ids), len(batch.temperature), len(batch.seeds), len(batch.num_generated)}
    assert lengths == {len(batch.sample_rows)}
