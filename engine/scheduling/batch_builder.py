"""From the resident table to the columns of one step."""

from dataclasses import dataclass

import numpy as np

from engine.request import TokenIds
from engine.scheduling.batch import Ints, SpecialRow, StepBatch
from engine.scheduling.layout import Layout, Slots
from engine.scheduling.residents import Residents


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Rows of one segment that are no decode row: its next `token_ids`; `slot` is its row in the table."""

    slot: int
    token_ids: TokenIds


def build_batch(
    residents: Residents,
    decoding: Slots,
    spans: list[Span],
    page_size: int,
    eos_token_ids: TokenIds,
) -> tuple[StepBatch, Slots]:
    """The step that computes `spans` and one row of each leaf that is `decoding`.

    `residents.num_computed` counts the step's own rows already. eos_token_ids: int32.
    Returns: the batch, and the table's slot of each sampled row, int64 [S].
    """
    num_rows = np.zeros(len(residents.rank), dtype=np.int32)
    num_rows[decoding] = 1
    for span in spans:
        num_rows[span.slot] = len(span.token_ids)
    layout = _with_rows(residents.layout(), num_rows)
    slots = layout.slots
    row_count = num_rows[slots]
    row_stop = np.cumsum(row_count, dtype=np.int32)
    kv_len = residents.num_computed[slots]
    position = residents.position[slots]

    # Row r of segment i is its token r - row_start[i] + (tokens computed before this step).
    offsets = np.arange(row_stop[-1], dtype=np.int32) + np.repeat(kv_len - row_stop, row_count)
    pages, within = np.divmod(offsets, np.int32(page_size))
    pages += np.repeat(layout.page_start[:-1], row_count)

    is_sampled = residents.is_leaf[slots] & (kv_len == residents.num_tokens[slots])
    sampled = slots[is_sampled]
    batch = StepBatch(
        token_ids=_token_ids(residents, spans, slots, row_count),
        positions=offsets + np.repeat(position, row_count),
        slots=layout.page_ids[pages] * np.int32(page_size) + within,
        row_start=row_stop - row_count,
        row_count=row_count,
        subtree_end=np.concatenate(([np.int32(0)], row_stop), dtype=np.int32)[layout.subtree_stop],
        kv_len=kv_len,
        kv_position=position,
        page_start=layout.page_start,
        page_ids=layout.page_ids,
        sample_rows=row_stop[is_sampled] - 1,
        request_ids=residents.request_id[sampled],
        temperature=residents.temperature[sampled],
        top_p=residents.top_p[sampled],
        top_k=residents.top_k[sampled],
        min_p=residents.min_p[sampled],
        seeds=residents.seed[sampled],
        num_generated=residents.num_tokens[sampled] - residents.num_prompt[sampled],
        special=_special_rows(residents, sampled, eos_token_ids),
    )
    return batch, sampled


def _special_rows(residents: Residents, sampled: Slots, eos_token_ids: TokenIds) -> tuple[SpecialRow, ...]:
    rows = []
    for index in np.flatnonzero(residents.is_special[sampled]).tolist():
        slot = int(sampled[index])
        request = residents.sequence_at(slot).request
        sampling, output_ids = request.sampling, residents.output_of(slot)
        banned: list[TokenIds] = []
        if len(output_ids) < sampling.min_tokens:
            banned.append(np.array(sampling.stop_token_ids, dtype=np.int32))
            if not sampling.ignore_eos:
                banned.append(eos_token_ids)
        banned_ids = np.concatenate(banned) if banned else output_ids[:0]
        rows.append(SpecialRow(index, sampling, request.prompt_ids, output_ids, banned_ids))
    return tuple(rows)


def _with_rows(layout: Layout, num_rows: Ints) -> Layout:
    """The residents whose subtree has a row in this step: in most steps all of them."""
    rows_before = np.concatenate(([0], np.cumsum(num_rows[layout.slots])))
    kept = rows_before[layout.subtree_stop] > rows_before[:-1]
    if kept.all():
        return layout
    kept_before = np.concatenate(([0], np.cumsum(kept)))
    num_pages = np.diff(layout.page_start)
    return Layout(
        slots=layout.slots[kept],
        subtree_stop=kept_before[layout.subtree_stop[kept]],
        page_start=np.concatenate(([0], np.cumsum(num_pages[kept])), dtype=np.int32, casting="same_kind"),
        page_ids=layout.page_ids[np.repeat(kept, num_pages)],
    )


def _token_ids(residents: Residents, spans: list[Span], slots: Slots, row_count: Ints) -> TokenIds:
    # Right for decoding leaves; rows of a span repeat a stale token until they are overwritten.
    token_ids = np.repeat(residents.last_token[slots], row_count)
    if spans:
        first_row = np.zeros(len(residents.rank), dtype=np.int64)
        first_row[slots] = np.cumsum(row_count) - row_count
        for span in spans:
            start = first_row[span.slot]
            token_ids[start : start + len(span.token_ids)] = span.token_ids
    return token_ids
