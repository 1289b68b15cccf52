"""The tiles of a launch: every row meets every token it may see exactly once, whatever is cut where."""

import itertools
import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.steps import forest, lay_out
from engine.attention import split_cost
from engine.attention.tiles import StepTiles, TileLimits
from kernels.prefix_attention import NO_PARTIAL
from tests.engine.attention.forests import random_step

limits = st.builds(
    TileLimits,
    group=st.sampled_from([1, 3, 4, 16]),
    num_kv_heads=st.sampled_from([1, 8]),
    wide=st.sampled_from([16, 64]),
    block_kv=st.sampled_from([1, 8, 32]),
    num_programs=st.sampled_from([1, 100, 10_000]),
)
seeds, windows = st.integers(0, 2**32), st.sampled_from([None, 1, 7, 30])


def _step_and_plan(seed, limits, window, sinks=False):
    step = random_step(seed, page_size=4, scattered=True)
    return step, StepTiles(step.batch).plan(limits, window=window, sinks=sinks)


@given(seed=seeds, limits=limits, window=windows)
@settings(max_examples=100, deadline=None)
def test_rows_meet_their_tokens_exactly_once(seed, limits, window):
    step, plan = _step_and_plan(seed, limits, window)
    batch = step.batch
    seen = [[] for _ in range(batch.num_tokens)]
    first_read: dict[tuple[int, int], tuple[int, bool]] = {}  # by rows and pages: a token, whether it is seen
    for row_start, num_rows, page_start, kv_start, kv_end, open_end, kv_position, _ in plan.items.tolist():
        assert kv_start < kv_end
        assert kv_start <= open_end <= kv_end
        assert 0 < num_rows * limits.group <= max(limits.wide, limits.group)
        nearest = min(batch.positions[row_start : row_start + num_rows].tolist()) - kv_position - kv_start
        read = kv_start, window is None or nearest < window
        first_read[row_start, page_start] = min(read, first_read.get((row_start, page_start), read))
        for row in range(row_start, row_start + num_rows):
            for token in range(kv_start, kv_end):
                distance = int(batch.positions[row]) - kv_position - token
                visible = distance >= 0 and (window is None or distance < window)
                assert visible or token >= open_end
                if visible:
                    page = int(batch.page_ids[page_start + token // 4])
                    seen[row].append(page * 4 + token % 4)
    assert all(is_seen for _, is_seen in first_read.values())  # nothing is read that only older rows saw
    assert [sorted(slots) for slots in seen] == [
        sorted(slots.tolist()) for slots in step.visible_slots(window)
    ]


@given(seed=seeds, limits=limits, window=windows, sinks=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_row_is_written_once_or_merged_from_all_its_parts(seed, limits, window, sinks):
    step, plan = _step_and_plan(seed, limits, window, sinks)
    written, parts = [], {}
    for row_start, num_rows, *_, partial_start in plan.items.tolist():
        for i in range(num_rows):
            if partial_start == NO_PARTIAL:
                written.append(row_start + i)
            else:
                parts.setdefault(row_start + i, set()).add(partial_start + i)
    merged = {
        int(row): set(plan.merge_parts[start:end].tolist())
        for row, (start, end) in zip(
            plan.merge_rows, itertools.pairwise(plan.merge_starts.tolist()), strict=True
        )
    }
    assert merged == parts
    assert sorted([*written, *merged]) == list(range(step.batch.num_tokens))
    assert not (sinks and written)
    for row_start, num_rows, *_, partial_start in plan.items.tolist():
        if partial_start != NO_PARTIAL:  # some row of the tile needs it
            assert sinks or any(len(parts[row_start + i]) > 1 for i in range(num_rows))
    assert sorted(part for of_row in parts.values() for part in of_row) == list(range(plan.num_partial_rows))


@given(seed=seeds, limits=limits)
@settings(max_examples=50, deadline=None)
def test_the_costliest_tiles_come_first(seed, limits):
    _, plan = _step_and_plan(seed, limits, None)
    rows, kv_tokens = (
        plan.items[:, 1].astype(np.int64),
        (plan.items[:, 4] - plan.items[:, 3]).astype(np.int64),
    )
    assert (np.diff(split_cost.item_tokens(kv_tokens, rows * limits.group)) <= 0).all()


@given(
    ranges=st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 300)), min_size=1, max_size=4),
    limits=limits,
    window=st.sampled_from([None, 5_000]),
)
@settings(max_examples=50, deadline=None)
def test_splitting_adds_no_more_partial_rows_than_it_may(ranges, limits, window):
    """Whole KV blocks are cut, so a length rounded down would add more than the formula says."""
    batch = lay_out(
        forest([(0, *of_segment) for of_segment in ranges]), 16, random.Random(0), scattered=False
    ).batch
    plan = StepTiles(batch).plan(limits, window=window)
    whole = StepTiles(batch).plan(replace(limits, block_kv=1 << 20), window=window)  # a block holds any range
    added = plan.items[:, 1].sum() - whole.items[:, 1].sum()
    assert 0 <= added <= split_cost.MAX_SPLIT_ROWS


def test_pieces_are_longer_where_there_is_enough_work_and_bounded_in_their_partial_rows():
    def piece(num_items, kv_tokens, num_rows, num_programs=132):
        columns = (np.full(num_items, kv_tokens), np.full(num_items, num_rows))
        return split_cost.piece_tokens(
            *columns, group=4, num_kv_heads=8, num_programs=num_programs, block_kv=64
        )

    alone, crowd = piece(1, 8000, 1), piece(1000, 8000, 1)
    assert alone < 8000 / 16  # one sequence: 8 heads alone would leave 124 of 132 multiprocessors idle
    assert crowd > 8000 / 4  # a thousand: nearly whole ranges
    assert piece(1, 8000, 1, num_programs=8) > 8000 / 16
    assert 500 * 32 * (100_000 / piece(500, 100_000, 32)) <= split_cost.MAX_SPLIT_ROWS
