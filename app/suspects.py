"""Which lines may be in the engine together: a line that kills the worker is told apart from its neighbours.

An attempt is recorded before a line runs, and taken back when the worker lets go of it in order. So the
attempts of a line without a result are worker deaths that it was in the engine for:

    deaths  0, 1       2                      3, 4, 5    6
    runs    with all   among WATCHED_LINES    alone      no more: it becomes an error line

One death may have had any cause and costs nothing; a death among few leaves few suspects. Only a line that
was alone in the engine three times when the worker died is given up, and after each of them all others
go first: a worker which is killed from outside again and again meets another line each time.
Once a line is given up its neighbours' deaths are explained, and they start over; deaths alone stay.

A direct request runs once: after a death it is given up, since whoever waits for it can ask again. It runs
beside any line but one that is to be alone; where such lines wait, they and direct requests take turns.
"""

from collections.abc import Collection, Sequence

from app.db.lines import PendingLine
from app.openai.body import BodyError

WATCHED_DEATHS = 2
ALONE_DEATHS = 3
GUILTY_DEATHS = 6
WATCHED_LINES = 64


def is_suspect(deaths: int) -> bool:
    """Whether a line with so many deaths may only run among few."""
    return deaths >= WATCHED_DEATHS


def urgency(deaths: int) -> int:
    """Orders waiting lines, the highest first; negative: was alone at a death, comes after all others."""
    return deaths if deaths <= ALONE_DEATHS else -deaths


def num_to_admit(next_deaths: Sequence[int], num_not_alone: int, deaths_in_engine: Collection[int]) -> int:
    """How many of the waiting lines may join those in the engine.

    next_deaths: deaths of the first WATCHED_LINES that wait, most urgent first.
    num_not_alone: lines that wait and were never alone at a death.
    deaths_in_engine: of each line there.
    """
    if not next_deaths:
        return 0
    most_in_engine = max(deaths_in_engine, default=0)
    if max(next_deaths[0], most_in_engine) >= ALONE_DEATHS:
        return 0 if deaths_in_engine else 1
    if is_suspect(next_deaths[0]):
        # Refilled by halves: neighbours in the window, which are planned together, share their prefixes.
        num_free = WATCHED_LINES - len(deaths_in_engine)
        num_watched = sum(WATCHED_DEATHS <= deaths < ALONE_DEATHS for deaths in next_deaths)
        return min(num_free, num_watched) if num_free >= WATCHED_LINES // 2 else 0
    return 0 if is_suspect(most_in_engine) else num_not_alone


def guilty_error(line: PendingLine, *, is_direct: bool) -> BodyError:
    """What a line that is given up is answered with."""
    if is_direct:
        return BodyError(
            "The worker process died while this request was running. It may be the reason, so it is not run "
            "again by itself.",
            code="worker_died",
            status=500,
            type="server_error",
        )
    num_alone = GUILTY_DEATHS - ALONE_DEATHS
    return BodyError(
        f"This request was given up: the worker process died {line.attempts} times while it was running, "
        f"the last {num_alone} times with no other request beside it.",
        code="worker_died",
        status=500,
        type="server_error",
    )
