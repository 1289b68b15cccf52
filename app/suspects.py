"""Which lines may be in the engine together: a line that kills the worker is told apart from its neighbours.

An attempt is recorded before a line runs, and taken back when the worker lets go of it in order. So the
attempts of a line without a result are worker deaths that it was in the engine for:

    deaths  0, 1       2                      3, 4, 5    6
    runs    with all   among WATCHED_LINES    alone      no more: it becomes an error line

One death may have had any cause and costs nothing; a death among few leaves few suspects. Only a line that
was alone in the engine three times in a row when the worker died is given up, so that a worker which is
killed from outside does not lose lines. The deaths are then explained: the other lines start over.
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


def num_to_admit(next_deaths: Sequence[int], num_waiting: int, deaths_in_engine: Collection[int]) -> int:
    """How many of the waiting lines may join those in the engine.

    next_deaths: deaths of the first WATCHED_LINES that wait, in descending order; deaths_in_engine: of each
    line there.
    """
    if not next_deaths:
        return 0
    most_in_engine = max(deaths_in_engine, default=0)
    if max(next_deaths[0], most_in_engine) >= ALONE_DEATHS:
        return 0 if deaths_in_engine else 1
    if is_suspect(next_deaths[0]):
        # Refilled by halves: neighbours in the window, which are planned together, share their prefixes.
        num_free = WATCHED_LINES - len(deaths_in_engine)
        num_suspects = sum(map(is_suspect, next_deaths))
        return min(num_free, num_suspects) if num_free >= WATCHED_LINES // 2 else 0
    return 0 if is_suspect(most_in_engine) else num_waiting


def guilty_error(line: PendingLine) -> BodyError:
    """What a line that is given up is answered with."""
    num_alone = GUILTY_DEATHS - ALONE_DEATHS
    return BodyError(
        f"This request was given up: the worker process died {line.attempts} times while it was running, "
        f"the last {num_alone} times with no other request beside it.",
        code="worker_died",
        status=500,
        type="server_error",
    )
