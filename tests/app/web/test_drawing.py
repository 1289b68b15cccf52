"""The drawn tree and the plots, for three nodes and for thousands."""

from hypothesis import given
from hypothesis import strategies as st

from app.batch_telemetry import Point, Series, outline_json
from app.web.plots import draw_series
from app.web.tree import ROW_PIXELS, draw_tree
from engine.planning.outline import outline_of
from engine.planning.planner import make_plan
from tests.engine.planning.requests import prompt_lists, request


def drawing_of(prompts):
    plan = make_plan([request(i, p) for i, p in enumerate(prompts)], page_size=1, num_pages=10**6)
    return draw_tree(outline_json(outline_of(plan, str), str))


@given(prompt_lists(max_prompts=30))
def test_blocks_lie_inside_and_never_over_each_other(prompts):
    drawing = drawing_of(prompts)
    for block in drawing.blocks:
        assert -0.01 <= block.x <= block.x + block.width <= 100.01
        assert 0 <= block.y <= block.y + block.height <= drawing.height + 0.2
        assert block.height >= ROW_PIXELS
    for index, first in enumerate(drawing.blocks):
        for second in drawing.blocks[index + 1 :]:
            across = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
            down = min(first.y + first.height, second.y + second.height) - max(first.y, second.y)
            assert across <= 0.02 or down <= 0.2


def test_thousands_of_groups_stay_readable_and_the_largest_come_first():
    prompts = [
        [group % 250 + 2, group // 250 + 2, *([1] * (10 + group % 90)), 7, tail]
        for group in range(3_000)
        for tail in (5, 6)
    ]
    drawing = drawing_of(prompts)
    assert len(drawing.blocks) < 150
    assert drawing.height < 4_000
    assert "smaller groups" in "".join(block.title for block in drawing.blocks)
    tops = [block for block in drawing.blocks if block.kind == "prefix" and block.level == 0]
    sizes = [int(block.title.split()[3].replace(",", "")) for block in tops]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 1


def test_three_nodes():
    drawing = drawing_of([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7]])
    assert [(b.kind, b.level) for b in drawing.blocks] == [("prefix", 0), ("tail", 1)]
    prefix, tail = drawing.blocks
    assert (prefix.x, prefix.label) == (0, "2 × 4 tokens")
    assert abs(tail.x - prefix.width) < 0.01
    assert tail.label == "2 × 2 tokens"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5000), st.integers(0, 100)), min_size=1))
def test_plots_stay_within_their_frame(looks):
    series = Series()
    for second, (steps, tokens, kv) in enumerate(looks):
        series.add(Point(100.0 + second, 1.0, steps, tokens, kv, kv // 2))
    plots = draw_series(
        {"points": [list(p) for p in series.points], "interval_seconds": 1.0, "kv_capacity_tokens": 100}
    )
    for plot in (plots.tokens_per_step, plots.kv):
        for path, _ in plot.areas:
            for number in (
                path.replace("M", " ").replace("V", " ").replace("H", " ").replace("Z", " ").split()
            ):
                assert 0 <= float(number) <= 1000
    assert plots.kv.highest == max(p.kv_tokens for p in series.points)
    steps = plots.tokens_per_step
    assert steps.top % 2 == 0
    assert steps.top <= max(2, 2 * steps.highest)
