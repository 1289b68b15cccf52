"""Attention by torch's fused CPU kernel, which returns each row's log-sum-exp beside its output.

A step's work list becomes three kinds of calls, in this order:

    fresh   own items of several rows: causal among the step's own rows, spans of equal length that
            lie side by side in one call
    tails   own items of one row (decoding): their short KV gathered and padded, many in one call
    ranges  the rest: many rows stacked over one range of a segment, read in place where its pages
            are one run; merged into what the rows have so far

Every row starts in `fresh` or `tails`, so its output is written once and then only merged into.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.kv_pool import KVPool
from engine.attention.plain import add_sinks, plain_attention
from engine.attention.work_list import WorkList, build_work_list
from engine.scheduling.batch import StepBatch

Ints = NDArray[np.int64]
Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]  # with the arguments of `_flash`

# Tails in one call: padding to the longest may waste at most a quarter, and the gathered copy should
# stay in cache: 64 tails of 80 tokens (3 heads of 64, fp32) took 1.4 ms in calls of 16 and 2.1 ms in one.
_SHORTEST_IN_CALL = 0.75
_SLOTS_IN_CALL = 1536


@dataclass(frozen=True, slots=True, eq=False)
class _Fresh:
    """`count` spans of `length` rows each from `row_start` on; mask float [1, 1, length, length] (0 or -inf),
    None where plain causal attention is meant."""

    row_start: int
    count: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Tails:
    """rows int64 [B]; slots int64 [B * L], padded; mask float [B, 1, 1, L] (0 or -inf), None without
    padding."""

    rows: torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Range:
    """rows over slots: a slice where they are one run, else int64 [n]. mask float [rows, n];
    blind bool [rows]: rows that see nothing of the range."""

    rows: slice
    slots: slice | torch.Tensor
    mask: torch.Tensor | None
    blind: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Calls:
    fresh: list[_Fresh]
    tails: list[_Tails]
    ranges: list[_Range]


class TorchBackend:
    """Plans steps over one KV pool.

    windows: for each layer its sliding window, None for full attention.
    """

    def __init__(self, pool: KVPool, page_size: int, windows: Sequence[int | None]) -> None:
        self._pool = pool
        self._page_size = page_size
        self._windows = list(windows)

    def plan(self, batch: StepBatch) -> "TorchStep":
        planner = _StepPlanner(batch, self._page_size)
        calls = {window: planner.calls(window) for window in set(self._windows)}
        slots = torch.from_numpy(batch.slots.astype(np.int64))
        return TorchStep(self._pool, slots, [calls[window] for window in self._windows])


class TorchStep:
    def __init__(self, pool: KVPool, slots: torch.Tensor, calls: list[_Calls]) -> None:
        self._pool = pool
        self._slots = slots
        self._calls = calls

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # The fused kernel knows no soft cap, and wants keys and values of one size.
        is_plain = soft_cap is not None or key.shape[-1] != value.shape[-1]
        kernel: Kernel = partial(plain_attention, soft_cap=soft_cap) if is_plain else _flash
        self._pool.write(layer, self._slots, key, value)
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        num_rows, num_heads, _ = query.shape
        output = query.new_empty(num_rows, num_heads, value.shape[-1])
        lse = torch.empty(num_rows, num_heads, dtype=torch.float32)
        calls = self._calls[layer]
        for fresh in calls.fresh:
            _run_fresh(kernel, fresh, query, key, value, scaling, output, lse)
        for tails in calls.tails:
            _run_tails(kernel, tails, query, keys, values, scaling, output, lse)
        for item in calls.ranges:
            _run_range(kernel, item, query, keys, values, scaling, output, lse)
        if sinks is not None:  # once, when a row's log-sum-exp is whole
            add_sinks(output, lse, sinks)
        return output


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, Hq, R, D] over k and v [B, Hkv, n, D], n > 0: ([B, Hq, R, D], natural-log lse [B, Hq, R])."""
    if mask is not None:
        mask = mask.to(query.dtype)
    state: tuple[torch.Tensor, torch.Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
    )
    return state


def _run_fresh(
    kernel: Kernel,
    call: _Fresh,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    rows = slice(call.row_start, call.row_start + call.count * call.length)

    def spans(tensor: torch.Tensor) -> torch.Tensor:  # [rows, H, D] -> [count, H, length, D], in place
        return tensor[rows].view(call.count, call.length, *tensor.shape[1:]).transpose(1, 2)

    partial, partial_lse = kernel(
        spans(query), spans(key), spans(value), scaling, causal=call.mask is None, mask=call.mask
    )
    spans(output).copy_(partial)
    lse[rows].view(call.count, call.length, -1).copy_(partial_lse.transpose(1, 2))


def _run_tails(
    kernel: Kernel,
    call: _Tails,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    num_tails, num_kv_heads, head_dim = len(call.rows), *keys.shape[1:]

    def gather(pool: torch.Tensor) -> torch.Tensor:  # [B * L] slots -> [B, Hkv, L, D]
        return pool.index_select(0, call.slots).view(num_tails, -1, *pool.shape[1:]).transpose(1, 2)

    # The query heads of one KV head become the rows of one small matrix.
    grouped = query.index_select(0, call.rows).view(num_tails, num_kv_heads, -1, head_dim)
    partial, partial_lse = kernel(grouped, gather(keys), gather(values), scaling, mask=call.mask)
    output.index_copy_(0, call.rows, partial.flatten(1, 2))
    lse.index_copy_(0, call.rows, partial_lse.flatten(1, 2))


def _run_range(
    kernel: Kernel,
    call: _Range,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    def heads_first(tensor: torch.Tensor) -> torch.Tensor:  # [n, Hkv, D] -> [1, Hkv, n, D], in place
        return tensor.transpose(0, 1).unsqueeze(0)

    num_rows, (num_kv_heads, head_dim) = call.rows.stop - call.rows.start, keys.shape[1:]
    group = query.shape[1] // num_kv_heads

    def by_kv_head(rows: torch.Tensor) -> torch.Tensor:  # [R, Hq, ...] -> [R, Hkv, group, ...], in place
        return rows.view(num_rows, num_kv_heads, group, *rows.shape[2:])

    def unstacked(partial: torch.Tensor) -> torch.Tensor:  # [1, Hkv, group * R, ...] -> [R, Hkv, group, ...]
        return partial.view(num_kv_heads, group, num_rows, *partial.shape[3:]).movedim(2, 0)

    # The query heads of one KV head are stacked as rows: exact without a causal mask, and up to a
    # quarter faster than the kernel's own grouping where rows are few.
    stacked = by_kv_head(query[call.rows]).movedim(0, 2).reshape(1, num_kv_heads, -1, head_dim)
    mask = None if call.mask is None else call.mask.repeat(group, 1)[None, None]
    partial, partial_lse = map(
        unstacked,
        kernel(stacked, heads_first(keys[call.slots]), heads_first(values[call.slots]), scaling, mask=mask),
    )
    if call.blind is not None:  # the kernel says lse = 0 where a row sees nothing
        partial_lse = partial_lse.masked_fill(call.blind[:, None, None], -torch.inf)
    merge_state(by_kv_head(output[call.rows]), by_kv_head(lse[call.rows]), partial, partial_lse)


def merge_state(
    output: torch.Tensor, lse: torch.Tensor, partial: torch.Tensor, partial_lse: torch.Tensor
) -> None:
    """Merge a partial attention state into (output [..., D], lse [...]) in place.

    With s = logaddexp(a, b): output = output * exp(a - s) + partial * exp(b - s); lse = s
    (Hydragen, FlashInfer's cascade).
    """
    # exp(b - s) = sigmoid(b - a): one pass instead of three
    weight = torch.sigmoid(partial_lse - lse).unsqueeze(-1).to(output.dtype)
    output.lerp_(partial, weight)
    lse.copy_(torch.logaddexp(lse, partial_lse))


class _StepPlanner:
    """Turns one step's work lists (one per distinct window) into calls."""

    def __init__(self, batch: StepBatch, page_size: int) -> None:
        self._batch = batch
        self._page_size = page_size
        self._page_start = batch.page_start[:-1].astype(np.int64)
        self._page_ids = batch.page_ids.astype(np.int64)
        # Whether the pages that hold KV are one run; those behind them wait for tokens to come.
        num_breaks = np.concatenate([[0], np.cumsum(np.diff(self._page_ids) != 1)])
        last = self._page_start + -(-batch.kv_len // page_size) - 1
        self._is_one_run = num_breaks[self._page_start] == num_breaks[last]

    def calls(self, window: int | None) -> _Calls:
        work = build_work_list(self._batch, window)
        lengths = work.row_end - work.row_start
        own_kv = self._batch.kv_len[work.segment]
        tails = np.flatnonzero(work.causal & (lengths == 1))
        fresh = np.flatnonzero(work.causal & (lengths > 1))
        below = np.flatnonzero(~work.causal)
        # A chunk that is not its segment's first also reads what earlier steps wrote.
        earlier = fresh[own_kv[fresh] > lengths[fresh]]
        ranges = [self._range(work, i, int(own_kv[i] - lengths[i]), window) for i in earlier.tolist()]
        ranges += [self._range(work, i, int(work.kv_end[i]), window) for i in below.tolist()]
        return _Calls(
            fresh=self._fresh(work.row_start[fresh], lengths[fresh], window),
            tails=self._tails(work, tails),
            ranges=[call for call in ranges if call is not None],
        )

    def _fresh(self, row_starts: Ints, lengths: Ints, window: int | None) -> list[_Fresh]:
        calls: list[_Fresh] = []
        for row_start, length in zip(row_starts.tolist(), lengths.tolist(), strict=True):
            previous = calls[-1] if calls else None
            if previous is not None and (
                previous.length == length and previous.row_start + previous.count * length == row_start
            ):
                calls[-1] = _Fresh(previous.row_start, previous.count + 1, length, previous.mask)
            else:
                calls.append(_Fresh(row_start, 1, length, _window_mask(length, window)))
        return calls

    def _tails(self, work: WorkList, items: Ints) -> list[_Tails]:
        kv_lens = (work.kv_end - work.kv_start)[items]
        order = np.argsort(-kv_lens, kind="stable")
        items, kv_lens = items[order], kv_lens[order]
        calls = []
        start = 0
        while start < len(items):
            longest = int(kv_lens[start])
            most = max(1, _SLOTS_IN_CALL // longest)
            fit = int(np.searchsorted(-kv_lens[start:], -_SHORTEST_IN_CALL * longest, side="right"))
            end = start + min(most, fit)
            calls.append(self._tail_call(work, items[start:end], kv_lens[start:end]))
            start = end
        return calls

    def _tail_call(self, work: WorkList, items: Ints, kv_lens: Ints) -> _Tails:
        offsets = np.arange(kv_lens[0])
        padded = offsets >= kv_lens[:, None]
        tokens = np.where(padded, work.kv_start[items, None], work.kv_start[items, None] + offsets)
        pages = self._page_ids[self._page_start[work.segment[items], None] + tokens // self._page_size]
        slots = pages * self._page_size + tokens % self._page_size
        mask = None
        if padded.any():
            mask = torch.from_numpy(np.where(padded, np.float32(-np.inf), np.float32(0)))[:, None, None]
        return _Tails(torch.from_numpy(work.row_start[items]), torch.from_numpy(slots.ravel()), mask)

    def _range(self, work: WorkList, item: int, kv_end: int, window: int | None) -> _Range | None:
        kv_start, segment = int(work.kv_start[item]), int(work.segment[item])
        if kv_start >= kv_end:
            return None
        rows = slice(int(work.row_start[item]), int(work.row_end[item]))
        mask = blind = None
        if window is not None:
            first_key = int(self._batch.kv_position[segment]) + kv_start
            distance = self._batch.positions[rows, None] - (first_key + np.arange(kv_end - kv_start))
            hidden = distance >= window
            if hidden.any():
                mask = torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0)))
                blind = torch.from_numpy(hidden.all(axis=1))
        return _Range(rows, self._slots(segment, kv_start, kv_end), mask, blind)

    def _slots(self, segment: int, kv_start: int, kv_end: int) -> slice | torch.Tensor:
        first_page = int(self._page_start[segment])
        if self._is_one_run[segment]:
            base = int(self._page_ids[first_page]) * self._page_size
            return slice(base + kv_start, base + kv_end)
        tokens = np.arange(kv_start, kv_end)
        pages = self._page_ids[first_page + tokens // self._page_size]
        return torch.from_numpy(pages * self._page_size + tokens % self._page_size)


def _window_mask(length: int, window: int | None) -> torch.Tensor | None:
    """Causal and within the window, as float [1, 1, length, length]; None where causal says it all."""
    if window is None or length <= window:
        return None
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= window)
    return torch.zeros(1, 1, length, length).masked_fill(hidden, -torch.inf)
