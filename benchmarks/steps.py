"""Steps of work made by hand: segments with pages, rows to compute, and what each row may see."""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from engine.scheduling.batch import StepBatch

Ints = NDArray[np.int64]


@dataclass
class Node:
    """A segment: `num_computed` tokens before the step, `num_rows` in it."""

    depth: int
    parent: "Node | None"
    num_computed: int
    num_rows: int
    pages: list[int] = field(default_factory=list)

    @property
    def kv_len(self) -> int:
        return self.num_computed + self.num_rows

    @property
    def position(self) -> int:
        return self.parent.position + self.parent.kv_len if self.parent else 0

    def slots(self, page_size: int) -> Ints:
        """Of its tokens, in order."""
        tokens = np.arange(self.kv_len)
        return np.array(self.pages)[tokens // page_size] * page_size + tokens % page_size


@dataclass
class Step:
    """A batch, the segments it is made of (in preorder), and the slots that their pages lie in."""

    nodes: list[Node]
    batch: StepBatch
    page_size: int
    num_slots: int

    @property
    def kv_slots(self) -> torch.Tensor:
        """Slots that hold a token after this step's write."""
        return torch.from_numpy(np.concatenate([node.slots(self.page_size) for node in self.nodes]))

    def visible_slots(self, window: int | None) -> list[torch.Tensor]:
        """Per row all that it attends to, oldest first."""
        visible = []
        for node in self.nodes:
            chain = [node]
            while chain[0].parent:
                chain.insert(0, chain[0].parent)
            history = torch.from_numpy(np.concatenate([link.slots(self.page_size) for link in chain]))
            for position in range(node.position + node.num_computed, node.position + node.kv_len):
                first = 0 if window is None else max(0, position + 1 - window)
                visible.append(history[first : position + 1])
        return visible


def forest(segments: list[tuple[int, int, int]]) -> list[Node]:
    """Segments in preorder from (depth, tokens computed before, rows in this step)."""
    nodes: list[Node] = []
    for depth, num_computed, num_rows in segments:
        parent = next((node for node in reversed(nodes) if node.depth == depth - 1), None)
        nodes.append(Node(depth, parent if depth else None, num_computed, num_rows))
    return nodes


def decode_segments(groups: int, degree: int, prefix: int, own: int) -> list[tuple[int, int, int]]:
    """Every group a prefix of `prefix` tokens with `degree` sequences of `own` tokens, the last one computed
    in this step."""
    return ([(0, prefix, 0)] + [(1, own - 1, 1)] * degree) * groups


def lay_out(nodes: list[Node], page_size: int, rng: random.Random, *, scattered: bool) -> Step:
    """The step of these segments; their pages in runs, or `scattered` at random."""
    num_pages = sum(-(-node.kv_len // page_size) for node in nodes) + len(nodes)
    free = list(range(num_pages))
    if scattered:
        rng.shuffle(free)
    free.reverse()
    for node in nodes:
        node.pages = [free.pop() for _ in range(-(-node.kv_len // page_size))]
        if rng.random() < 1 / 3:  # a page for tokens to come, wherever it lies
            node.pages.append(free.pop(0))
    return Step(nodes, _batch(nodes, page_size), page_size, num_pages * page_size)


def _batch(nodes: list[Node], page_size: int) -> StepBatch:
    def ints(values: object) -> NDArray[np.int32]:
        return np.array(values, np.int32)

    row_count = ints([node.num_rows for node in nodes])
    row_end = np.cumsum(row_count)
    subtree_end, open_nodes = np.empty(len(nodes), np.int32), []
    for index, node in enumerate(nodes):
        while open_nodes and nodes[open_nodes[-1]].depth >= node.depth:
            subtree_end[open_nodes.pop()] = row_end[index - 1]
        open_nodes.append(index)
    subtree_end[open_nodes] = row_end[-1]

    num_rows = int(row_end[-1])
    none = ints([])
    return StepBatch(
        token_ids=np.zeros(num_rows, np.int32),
        positions=ints([node.position + i for node in nodes for i in range(node.num_computed, node.kv_len)]),
        slots=np.concatenate([node.slots(page_size)[node.num_computed :] for node in nodes]).astype(np.int32),
        row_start=(row_end - row_count).astype(np.int32),
        row_count=row_count,
        subtree_end=subtree_end,
        kv_len=ints([node.kv_len for node in nodes]),
        kv_position=ints([node.position for node in nodes]),
        page_start=ints(np.cumsum([0, *(len(node.pages) for node in nodes)])),
        page_ids=ints([page for node in nodes for page in node.pages]),
        sample_rows=none,
        request_ids=none.astype(np.int64),
        temperature=none.astype(np.float32),
        top_p=none.astype(np.float32),
        top_k=none,
        min_p=none.astype(np.float32),
        seeds=none.astype(np.uint64),
        num_generated=none,
    )
