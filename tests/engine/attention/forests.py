"""Random steps: a forest of segments with pages, some rows to compute, and what each row may see."""

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.scheduling.batch import StepBatch


@dataclass
class Node:
    """A segment of the forest: `num_computed` tokens before the step, `num_rows` in it."""

    depth: int
    parent: "Node | None"
    num_computed: int
    num_rows: int
    pages: list[int] = field(default_factory=list)
    subtree_end: int = 0
    row_start: int = 0

    @property
    def kv_len(self) -> int:
        return self.num_computed + self.num_rows

    @property
    def position(self) -> int:
        return self.parent.position + self.parent.kv_len if self.parent else 0


@dataclass
class Step:
    batch: StepBatch
    visible_slots: list[torch.Tensor]  # per row, its whole history, oldest first
    kv_slots: torch.Tensor  # that hold a token after this step's write
    num_slots: int


def random_step(
    seed: int, *, page_size: int, scattered: bool, max_length: int = 40, window: int | None = None
) -> Step:
    """A step over a random forest up to four levels deep; pages in runs, or `scattered` at random."""
    rng = random.Random(seed)
    nodes: list[Node] = []

    def grow(parent: Node | None, depth: int) -> int:
        inner = depth < 3 and rng.random() < 0.6
        num_rows = (
            rng.choice([0, 0, rng.randint(1, max_length)])
            if inner
            else rng.choice([1, 1, 1, rng.randint(1, max_length)])
        )
        num_computed = rng.choice([0, rng.randint(0, max_length)]) if num_rows else rng.randint(1, max_length)
        node = Node(depth, parent, num_computed, num_rows)
        nodes.append(node)
        rows = num_rows
        if inner:
            rows += sum(grow(node, depth + 1) for _ in range(rng.randint(1, 3)))
        return rows

    for _ in range(rng.randint(1, 3)):
        grow(None, 0)
    return lay_out(nodes, rng, page_size, scattered, window)


def lay_out(
    nodes: list[Node], rng: random.Random, page_size: int, scattered: bool, window: int | None
) -> Step:
    """The step of these segments, given in preorder."""
    num_pages = sum(-(-node.kv_len // page_size) for node in nodes) + len(nodes)
    free = list(range(num_pages))
    if scattered:
        rng.shuffle(free)
    row = 0
    positions, slots, visible = [], [], []
    for node in nodes:
        set_aside = rng.choice([0, 0, 1])  # a page for tokens to come, wherever it lies
        node.pages = [free.pop(0) for _ in range(-(-node.kv_len // page_size))]
        node.pages += [free.pop() for _ in range(set_aside)]
        node.row_start = row
        row += node.num_rows
        chain = [node]
        while chain[0].parent:
            chain.insert(0, chain[0].parent)
        history = [_slot(n, i, page_size) for n in chain for i in range(n.kv_len)]
        for i in range(node.num_computed, node.kv_len):
            position = node.position + i
            positions.append(position)
            slots.append(_slot(node, i, page_size))
            first = 0 if window is None else max(0, position + 1 - window)
            visible.append(torch.tensor(history[first : position + 1]))
    for index, node in enumerate(nodes):
        below = nodes[index + 1 :]
        end = next((i for i, n in enumerate(below) if n.depth <= node.depth), len(below))
        node.subtree_end = node.row_start + node.num_rows + sum(n.num_rows for n in below[:end])
    kv_slots = torch.tensor([_slot(node, i, page_size) for node in nodes for i in range(node.kv_len)])
    return Step(_batch(nodes, positions, slots), visible, kv_slots, num_pages * page_size)


def _slot(node: Node, token: int, page_size: int) -> int:
    return node.pages[token // page_size] * page_size + token % page_size


def _batch(nodes: list[Node], positions: list[int], slots: list[int]) -> StepBatch:
    def ints(values: list[int]) -> np.ndarray:
        return np.array(values, np.int32)

    page_start = np.cumsum([0, *(len(node.pages) for node in nodes)]).astype(np.int32)
    none = ints([])
    return StepBatch(
        token_ids=ints([0] * len(positions)),
        positions=ints(positions),
        slots=ints(slots),
        row_start=ints([node.row_start for node in nodes]),
        row_count=ints([node.num_rows for node in nodes]),
        subtree_end=ints([node.subtree_end for node in nodes]),
        kv_len=ints([node.kv_len for node in nodes]),
        kv_position=ints([node.position for node in nodes]),
        page_start=page_start,
        page_ids=ints([page for node in nodes for page in node.pages]),
        sample_rows=none,
        request_ids=none.astype(np.int64),
        temperature=none.astype(np.float32),
        top_p=none.astype(np.float32),
        seeds=none.astype(np.uint64),
        num_generated=none,
    )
