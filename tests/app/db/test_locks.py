"""Locks between processes."""

import subprocess
import sys

from app.db.locks import try_lock
from app.db.session import Database

_HOLD = (
    "import sys; from app.db.locks import try_lock; from app.db.session import Database\n"
    "with try_lock(Database(sys.argv[1]), 'a') as held:\n"
    "    print(held, flush=True); sys.stdin.readline()"
)


def test_only_one_holds_a_lock(database: Database) -> None:
    with (
        try_lock(database, "a") as first,
        try_lock(database, "a") as second,
        try_lock(database, "b") as other,
    ):
        assert (first, second, other) == (True, False, True)
    with try_lock(database, "a") as again:
        assert again


def test_a_lock_dies_with_its_holder(database: Database, database_url: str) -> None:
    command = [sys.executable, "-c", _HOLD, database_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with try_lock(database, "a") as held:
            assert not held
        holder.kill()
    while True:  # Postgres notices a broken connection within moments
        with try_lock(database, "a") as held:
            if held:
                return
