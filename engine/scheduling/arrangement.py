"""The order of what waits, by what was learned since it was planned."""

from itertools import groupby

import numpy as np

from engine.planning.ordering import Forest, OrderingPolicy, preorder
from engine.scheduling.outlook import Outlook
from engine.scheduling.residents import Residents
from engine.scheduling.segment import Segment
from engine.scheduling.sequence import Sequence

# It is due when so many sequences have ended, and a quarter as many as wait: it takes some microseconds for
# each that waits.
LEAST_ENDED = 32


class Arrangement:
    """num_ended: sequences, since the last `arrange`."""

    def __init__(self, ordering: OrderingPolicy, outlook: Outlook, residents: Residents) -> None:
        self.num_ended = 0
        self._ordering = ordering
        self._outlook = outlook
        self._residents = residents

    def is_due(self, num_waiting: int) -> bool:
        return num_waiting > 0 and self.num_ended >= max(LEAST_ENDED, num_waiting // 4)

    def arrange(self, sequences: list[Sequence], last_group: Segment | None) -> list[Sequence]:
        """Sequences that wait, job after job as they came; within a job depth first, siblings by the policy
        and what is left to compute. Equal ones keep their order.

        last_group: what it is below of goes first, however it ranks: a group that has begun goes on.
        """
        self.num_ended = 0
        begun = set()
        while last_group is not None:
            begun.add(last_group)
            last_group = last_group.parent
        arranged: list[Sequence] = []
        for _, members in groupby(sequences, key=lambda sequence: sequence.job):
            arranged += self._arrange(list(members), begun)
        return arranged

    def _arrange(self, sequences: list[Sequence], begun: set[Segment]) -> list[Sequence]:
        nodes: dict[Segment, int] = {}
        parents, prompt_tokens = [0], [0]
        for sequence in sequences:
            path: list[Segment] = []
            segment: Segment | None = sequence
            while segment is not None and segment not in nodes:
                path.append(segment)
                segment = segment.parent
            above = 0 if segment is None else nodes[segment]
            for segment in reversed(path):
                computed = 0 if segment.slot is None else int(self._residents.num_computed[segment.slot])
                parents.append(above)
                prompt_tokens.append(len(segment.token_ids) - computed)
                above = nodes[segment] = len(nodes) + 1
        leaves = np.array([nodes[sequence] for sequence in sequences])
        output_tokens = np.zeros(len(parents), dtype=np.int64)
        output_tokens[leaves] = [self._outlook.length(one.request.sampling, one) for one in sequences]
        arrival = np.full(len(parents), len(parents))
        arrival[leaves] = leaves
        forest = Forest(np.array(parents), np.array(prompt_tokens), output_tokens, arrival)
        keys = self._ordering(forest).astype(np.float64)
        keys[[node for segment, node in nodes.items() if segment in begun]] = -np.inf
        place = preorder(forest.parent, keys)[leaves - 1]
        return [sequences[index] for index in np.argsort(place).tolist()]
