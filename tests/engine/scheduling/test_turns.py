"""Whose turn it is: priority, groups, and fair shares of what tenants that wait get."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.request import Request, SamplingParams
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence
from engine.scheduling.turns import Turns

TOKENS = np.array([1], dtype=np.int32)


def _sequence(number: int, tenant: int, group: Segment | None = None, priority: int = 0) -> Sequence:
    request = Request(number, TOKENS, SamplingParams(max_tokens=1))
    return Sequence(group, TOKENS, request, priority=priority, tenant=tenant)


def _take(turns: Turns) -> Sequence:
    sequence = turns.first()
    assert sequence is not None
    turns.take(sequence)
    return sequence


# Per tenant and group: the tokens that each of its requests takes.
GROUPS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=12)


@given(st.lists(GROUPS, min_size=2, max_size=4), st.integers(1, 200))
def test_tenants_that_wait_get_equal_shares_and_groups_are_whole(tenants, turn_tokens):
    turns = Turns(turn_tokens)
    tokens_of: dict[int, int] = {}
    left = [0] * len(tenants)
    for tenant, groups in enumerate(tenants):
        for sizes in groups:
            group = Segment(None, TOKENS)
            for size in sizes:
                number = len(tokens_of)
                tokens_of[number] = size
                turns.add(_sequence(number, tenant, group))
                left[tenant] += 1
    given_to = [0] * len(tenants)
    last: Sequence | None = None
    group_tokens = 0
    for _ in range(len(tokens_of)):
        if all(left):
            # One tenant may be ahead by its turn and the request that ended it, never by more.
            assert max(given_to) - min(given_to) <= turn_tokens + 50
        taken = _take(turns)
        number, tenant = taken.request.request_id, taken.tenant
        if last is not None and taken.parent is not last.parent:
            is_left = any(one.parent is last.parent for one in turns.waiting())
            assert not is_left or group_tokens >= turn_tokens, "a group was torn"
        if last is None or taken.parent is not last.parent:
            group_tokens = 0
        turns.charge(tenant, tokens_of[number])
        given_to[tenant] += tokens_of[number]
        group_tokens += tokens_of[number]
        left[tenant] -= 1
        last = taken
    assert turns.first() is None
    assert not any(left)


def test_priority_is_strict_and_returned_ones_come_first():
    turns = Turns(100)
    low, high, returned = _sequence(0, 0), _sequence(1, 1, priority=2), _sequence(2, 0)
    returned.rank = 7
    turns.charge(1, 10**6)
    for sequence in (low, high):
        turns.add(sequence)
    turns.give_back(returned)
    assert [_take(turns) for _ in range(3)] == [high, returned, low]


def test_idle_time_earns_no_credit():
    turns = Turns(1)
    for number in range(100):
        turns.add(_sequence(number, tenant=0))
    for _ in range(50):
        turns.charge(_take(turns).tenant, 10)
    for number in range(100, 150):
        turns.add(_sequence(number, tenant=1))
    tenants = []
    for _ in range(20):
        tenants.append(_take(turns).tenant)
        turns.charge(tenants[-1], 10)
    assert tenants.count(0) in (9, 10, 11)


def test_what_is_over_is_passed_by():
    turns = Turns(100)
    first, second = _sequence(0, 0), _sequence(1, 0)
    turns.add(first)
    turns.add(second)
    first.is_over = True
    assert turns.waiting() == [second]
    assert _take(turns) is second
    assert turns.first() is None
