import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.memory.pages import PagePool

COMMANDS = st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 7)), max_size=40)


@given(st.integers(1, 24), COMMANDS)
def test_every_page_has_one_owner(num_pages, commands):
    pool = PagePool(num_pages, page_size=4)
    owned: list[np.ndarray] = []
    peak = 0
    for frees, where, how_many in commands:
        if frees and owned:
            pool.free(owned.pop(where % len(owned)))
        elif how_many <= pool.num_free:
            after = int(owned[where % len(owned)][-1]) if owned else None
            pages = pool.allocate(how_many, after)
            assert len(pages) == how_many
            if how_many:
                owned.append(pages)
        pool.check_invariants()
        everything = np.concatenate([*owned, np.empty(0, dtype=np.int32)])
        assert len(set(everything.tolist())) == len(everything) == pool.num_used
        peak = max(peak, pool.num_used)
    assert pool.peak_used == peak
    for pages in owned:
        pool.free(pages)
    assert pool.allocate(num_pages).tolist() == list(range(num_pages))


def test_extends_a_run_where_it_can():
    pool = PagePool(10, page_size=4)
    first = pool.allocate(2)
    assert pool.allocate(3, after=int(first[-1])).tolist() == [2, 3, 4]


def test_takes_the_shortest_run_that_suffices():
    pool = PagePool(20, page_size=4)
    pages = pool.allocate(20)
    pool.free(pages[2:8])
    pool.free(pages[10:13])
    assert pool.allocate(3).tolist() == [10, 11, 12]
    assert pool.allocate(4).tolist() == [2, 3, 4, 5]


def test_takes_pieces_where_no_run_suffices():
    pool = PagePool(10, page_size=4)
    pages = pool.allocate(10)
    pool.free(pages[[1, 4, 5, 8]])
    assert pool.allocate(3).tolist() == [4, 5, 1]


def test_freeing_twice_is_caught():
    pool = PagePool(4, page_size=4)
    pages = pool.allocate(2)
    pool.free(pages)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(pages)


def test_pages_for_tokens_are_rounded_up():
    assert [PagePool(1, page_size=4).num_pages_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
