"""Who is admitted next: strictly by priority, then by fair turns of the tenants, each in its own order.

A tenant's share is the tokens that were computed for it. The tenant with the smallest share has the turn,
and its turn lasts for a group: waiting requests, one after the other, below the same shared prefix. So a
prefix is not left while others of its members wait, but for a group that takes more than `turn_tokens`: it
goes on in the tenant's next turn, its prefix held by those of its members that run meanwhile.

Credit is not saved up: a tenant that begins to wait has at least the share that the last turn began with.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence

_RANKS_PER_PRIORITY = 1 << 40

Arrange = Callable[[list[Sequence], Segment | None], list[Sequence]]


def last_rank(priority: int) -> int:
    """No sequence of this priority or a higher one has a rank above it, and every other has."""
    return (1 - priority) * _RANKS_PER_PRIORITY - 1


@dataclass(frozen=True, slots=True)
class _Turn:
    """tenant: whose. group: the segment right above those admitted. ends_at: a share of the tenant."""

    tenant: int
    group: Segment | None
    ends_at: int


class Turns:
    """The sequences that wait. One that is over is passed by when it comes up.

    Those that ran before and were preempted come back first of their priority, earliest rank first.
    """

    def __init__(self, turn_tokens: int) -> None:
        self._turn_tokens = turn_tokens
        self._shares: defaultdict[int, int] = defaultdict(int)  # tokens, by tenant
        self._last_share = 0
        self._new: dict[int, dict[int, deque[Sequence]]] = {}  # by priority, by tenant
        self._returned: dict[int, list[tuple[int, Sequence]]] = {}  # by priority: heaps by rank
        self._turns: dict[int, _Turn] = {}  # by priority
        self._next_rank: dict[int, int] = {}  # by priority
        self._last_group: dict[tuple[int, int], Segment | None] = {}  # by priority and tenant that wait

    def charge(self, tenant: int, num_tokens: int) -> None:
        """Tokens were computed for the tenant."""
        self._shares[tenant] += num_tokens

    def share(self, tenant: int) -> int:
        """Tokens: compare it with that of other tenants that wait."""
        return self._shares[tenant]

    def add(self, sequence: Sequence) -> None:
        """The sequence waits from now on, after all others of its tenant and priority."""
        tenant = sequence.tenant
        if not any(tenant in tenants for tenants in self._new.values()):
            self._shares[tenant] = max(self._shares[tenant], self._last_share)
        tenants = self._new.setdefault(sequence.priority, {})
        tenants.setdefault(tenant, deque()).append(sequence)

    def give_back(self, sequence: Sequence) -> None:
        """The sequence, which ran, waits again."""
        heapq.heappush(self._returned.setdefault(sequence.priority, []), (sequence.rank, sequence))

    def first(self) -> Sequence | None:
        """The one to admit next; None: nobody waits."""
        while (priority := max((*self._returned, *self._new), default=None)) is not None:
            if priority in self._returned:
                sequence = self._returned[priority][0][1]
            else:
                sequence = self._new[priority][self._tenant_next(priority)][0]
            if not sequence.is_over:
                return sequence
            self._remove(sequence)
        return None

    def take(self, sequence: Sequence) -> None:
        """The one that `first` gave waits no more; one that never ran has its rank now."""
        priority, tenant = sequence.priority, sequence.tenant
        if priority not in self._returned and not self._goes_on(priority):
            share = self._shares[tenant]
            self._last_share = max(self._last_share, share)
            self._turns[priority] = _Turn(tenant, sequence.parent, share + self._turn_tokens)
        if not sequence.has_run:
            self._last_group[priority, tenant] = sequence.parent
        self._remove(sequence)
        if not sequence.has_run:
            sequence.rank = self._next_rank.get(priority, -priority * _RANKS_PER_PRIORITY)
            self._next_rank[priority] = sequence.rank + 1

    def reorder(self, arrange: Arrange) -> None:
        """Arranges anew, tenant by tenant, those that never ran.

        arrange: gets sequences in their order, and the segment right above the last one admitted from among
            them; gives the same ones.
        """
        for priority, tenants in self._new.items():
            for tenant, line in tenants.items():
                waiting = [sequence for sequence in line if not sequence.is_over]
                if waiting:
                    line.clear()
                    line.extend(arrange(waiting, self._last_group.get((priority, tenant))))

    def waiting(self) -> list[Sequence]:
        """All of them, in no order."""
        returned = [sequence for heap in self._returned.values() for _, sequence in heap]
        new = [one for tenants in self._new.values() for line in tenants.values() for one in line]
        return [sequence for sequence in (*returned, *new) if not sequence.is_over]

    def _goes_on(self, priority: int) -> bool:
        """Whether the group that has the turn has more, and may go on."""
        turn = self._turns.get(priority)
        if turn is None or turn.group is None or self._shares[turn.tenant] >= turn.ends_at:
            return False
        line = self._new[priority].get(turn.tenant)
        return line is not None and line[0].parent is turn.group

    def _tenant_next(self, priority: int) -> int:
        tenants = self._new[priority]
        if len(tenants) > 1 and self._goes_on(priority):
            return self._turns[priority].tenant
        return min(tenants, key=self._shares.__getitem__)

    def _remove(self, sequence: Sequence) -> None:
        """Takes out the one that is first."""
        priority, tenant = sequence.priority, sequence.tenant
        if (heap := self._returned.get(priority)) is not None:
            _, first = heapq.heappop(heap)
            if not heap:
                del self._returned[priority]
        else:
            tenants = self._new[priority]
            first = tenants[tenant].popleft()
            if not tenants[tenant]:
                del tenants[tenant]
                self._last_group.pop((priority, tenant), None)
            if not tenants:
                del self._new[priority]
                self._turns.pop(priority, None)
        assert first is sequence, "another is to be admitted first"
