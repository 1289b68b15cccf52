import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.ordering import decode_heavy_first


@st.composite
def forests(draw):
    parents = [0]
    for node in range(1, draw(st.integers(1, 14))):
        parents.append(draw(st.integers(0, node - 1)))
    sizes = st.lists(st.integers(1, 5), min_size=len(parents), max_size=len(parents))
    return np.array(parents), np.array(draw(sizes)), np.array(draw(sizes))


def naive_preorder(parent, prompt, output):
    children = {node: [] for node in range(len(parent))}
    for node in range(1, len(parent)):
        children[parent[node]].append(node)

    def total(node, values):
        return values[node] + sum(total(child, values) for child in children[node])

    def walk(node):
        for child in sorted(children[node], key=lambda child: -total(child, output) / total(child, prompt)):
            yield child
            yield from walk(child)

    return list(walk(0))


@given(forests())
def test_preorder_puts_the_larger_ratio_first(forest):
    parent, prompt, output = forest
    place = decode_heavy_first(parent, prompt, output)
    assert (np.argsort(place) + 1).tolist() == naive_preorder(*forest)
    assert sorted(place.tolist()) == list(range(len(parent) - 1))
