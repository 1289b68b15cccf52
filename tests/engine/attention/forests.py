"""Random steps."""

import random

from benchmarks.steps import Node, Step, lay_out


def random_step(seed: int, *, page_size: int, scattered: bool, max_length: int = 40) -> Step:
    """A step over a random forest up to four levels deep; pages in runs, or `scattered` at random."""
    rng = random.Random(seed)
    nodes: list[Node] = []

    def grow(parent: Node | None, depth: int) -> None:
        inner = depth < 3 and rng.random() < 0.6
        num_rows = (
            rng.choice([0, 0, rng.randint(1, max_length)])
            if inner
            else rng.choice([1, 1, 1, rng.randint(1, max_length)])
        )
        num_computed = rng.choice([0, rng.randint(0, max_length)]) if num_rows else rng.randint(1, max_length)
        node = Node(depth, parent, num_computed, num_rows)
        nodes.append(node)
        if inner:
            for _ in range(rng.randint(1, 3)):
                grow(node, depth + 1)

    for _ in range(rng.randint(1, 3)):
        grow(None, 0)
    return lay_out(nodes, page_size, rng, scattered=scattered)
