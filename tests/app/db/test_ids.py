"""Identifiers."""

import re
import time

from app.db.ids import new_id


def test_ids_are_distinct_and_sort_by_time() -> None:
    first = new_id("file-")
    assert re.fullmatch(r"file-[0-9a-f]{32}", first)
    time.sleep(0.002)
    assert first < new_id("file-")
    assert len({new_id("batch_") for _ in range(10_000)}) == 10_000
