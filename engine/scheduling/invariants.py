"""What must hold of the scheduler's forest between steps, recomputed from its leaves."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from engine.scheduling.occupancy import Occupancy
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence


def check_forest(unfinished: Iterable[Sequence], occupancy: Occupancy) -> None:
    """Asserts that every page has one owner, that the counts are right, and that residents are consistent."""
    sequences = list(unfinished)
    holds = _counted_above(sequence for sequence in sequences if sequence.slot is not None)
    members = _counted_above(sequences)
    for segment, num_members in members.items():
        assert segment.num_members == num_members, f"{segment.num_members} members, {num_members} counted"
        assert segment.num_holds == holds[segment], f"{segment.num_holds} holds, {holds[segment]} counted"
    residents = [segment for segment in (*sequences, *members) if segment.slot is not None]
    table = occupancy.residents
    assert len(residents) == int(table.is_resident.sum()), "somebody finished has pages"
    for segment in residents:
        _check_resident(segment, occupancy)
    num_shared = sum(len(segment.page_ids) for segment in members if segment.slot is not None)
    assert table.num_shared_pages == num_shared, f"{table.num_shared_pages} counted, {num_shared} there"
    pages = np.concatenate([np.empty(0, dtype=np.int32), *(segment.page_ids for segment in residents)])
    assert len(np.unique(pages)) == len(pages) == occupancy.pool.num_used, "a page has no owner, or two"
    for segment in members:
        assert segment.slot is None or table.is_idle[segment.slot] == (segment.num_holds == 0)


def _counted_above(leaves: Iterable[Segment]) -> Counter[Segment]:
    """Per segment above `leaves`, how many leaves and counted segments are right below it."""
    counts: Counter[Segment] = Counter()
    for leaf in leaves:
        segment = leaf.parent
        while segment is not None:
            counts[segment] += 1
            if counts[segment] > 1:
                break
            segment = segment.parent
    return counts


def _check_resident(segment: Segment, occupancy: Occupancy) -> None:
    table = occupancy.residents
    slot = table.slot_of(segment)
    num_computed, num_tokens = int(table.num_computed[slot]), int(table.num_tokens[slot])
    assert table.segment_at(slot) is segment
    assert table.num_pages[slot] == len(segment.page_ids)
    assert num_computed <= num_tokens
    assert num_computed <= len(segment.page_ids) * occupancy.pool.page_size, "tokens without a page"
    assert not table.decoding[slot] or num_computed == num_tokens - 1
    assert table.rank[slot] == segment.rank
    if segment.parent is not None:
        assert segment.parent.rank <= segment.rank, "a prefix is ranked behind what is below it"
        assert segment.parent.slot is not None, "a resident under one without pages"
        assert num_computed == 0 or table.is_complete(segment.parent), "computed before its prefix"
