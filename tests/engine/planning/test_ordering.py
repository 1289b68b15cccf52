import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.ordering import Forest, arrival_order, decode_heavy_first, preorder


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


def as_forest(parent, prompt, output):
    nodes = np.arange(len(parent))
    is_leaf = ~np.isin(nodes, parent)
    return Forest(
        parent=parent,
        prompt_tokens=prompt,
        output_tokens=np.where(is_leaf, output, 0),
        arrival=np.where(is_leaf, (nodes * 7) % 15, 99),
    )


@given(forests())
def test_preorder_puts_the_larger_ratio_first(drawn):
    forest = as_forest(*drawn)
    place = preorder(forest.parent, decode_heavy_first(forest))
    expected = naive_preorder(forest.parent, forest.prompt_tokens, forest.output_tokens)
    assert (np.argsort(place) + 1).tolist() == expected


@given(forests())
def test_every_policy_gives_a_preorder(drawn):
    forest = as_forest(*drawn)
    for policy in (arrival_order, decode_heavy_first):
        place = preorder(forest.parent, policy(forest))
        assert sorted(place.tolist()) == list(range(len(forest.parent) - 1))
        for node, parent in enumerate(forest.parent[1:].tolist(), start=1):
            assert parent == 0 or place[parent - 1] < place[node - 1]


def flat(prompt, output):
    """Leaves side by side."""
    columns = [np.array([0, *values]) for values in (prompt, output)]
    return as_forest(np.zeros(len(prompt) + 1, dtype=np.int64), *columns)


def order(policy, forest):
    return np.argsort(preorder(forest.parent, policy(forest))).tolist()


def test_arrival_follows_the_callers_list():
    forest = flat([1] * 4, [1] * 4)
    assert order(arrival_order, forest) == np.argsort(forest.arrival[1:]).tolist()
