"""Identifiers: a prefix and a core that sorts by time of creation."""

import os
import time


def new_id(prefix: str) -> str:
    """`prefix` (with its separator) and 32 hex digits: 48 bits of milliseconds, then 80 random ones."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{prefix}{milliseconds:012x}{os.urandom(10).hex()}"
