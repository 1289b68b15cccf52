"""How long a piece of KV one program should read: the cost model behind split-KV.

Everything is counted in KV tokens read by one program, since reading is what a program waits for: per
token a wide tile's products take about as long as the read (128 rows x 128 dims in bf16: 15 ns of
products, 20 ns of reading on an H100; 38 and 36 ns on an A100), a narrow tile's far less.
Cutting K tokens into pieces of L adds K / L partial states of cost b, spread over S programs, and the
launch ends with at most one piece running alone:

    time(L) = (K + b K / L) / S + L        least at        L = sqrt(b K / S)
"""

import math

import numpy as np
from numpy.typing import NDArray

# Starting a program, fetching its item and its queries, in the tokens (512 bytes each) that a program
# reads meanwhile: about 1.3 microseconds. From data sheets; no card has been measured.
PROGRAM_TOKENS = 64
# A stacked row's fp32 state is written and read again: the bytes of two bf16 tokens.
STATE_TOKENS_PER_ROW = 2
# Rows of partial state that splitting may add in one step: 67 MB for 32 heads of 128.
MAX_SPLIT_ROWS = 4096


def item_tokens(kv_tokens: NDArray[np.int64], stacked_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What items cost: [N] KV tokens each reads, [N] stacked rows of each."""
    return kv_tokens + PROGRAM_TOKENS + STATE_TOKENS_PER_ROW * stacked_rows


def piece_tokens(
    kv_tokens: NDArray[np.int64],
    num_rows: NDArray[np.int64],
    *,
    group: int,
    num_kv_heads: int,
    num_programs: int,
    block_kv: int,
) -> int:
    """The length of a piece, a multiple of `block_kv`, for [N] items of KV tokens and query rows, each run
    once per KV head, on a card that runs `num_programs` at a time."""
    overhead = PROGRAM_TOKENS + STATE_TOKENS_PER_ROW * group * num_rows
    best = np.sqrt(num_kv_heads * float(overhead @ kv_tokens) / num_programs)
    # n tokens in pieces of L or more add at most n / L states for each row of the item.
    least = float(num_rows @ kv_tokens) / MAX_SPLIT_ROWS
    return block_kv * max(1, round(float(best) / block_kv), math.ceil(least / block_kv))
