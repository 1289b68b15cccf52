"""Files that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` if the block succeeds and is gone if not. Raises OSError.

    It lies beside `path`, so that the rename stays on one disk, and ends like it, for who goes by that.
    """
    unfinished = path.with_name(f".part-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
