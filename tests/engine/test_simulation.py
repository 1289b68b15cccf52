import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cost_model import CostModel, JobWork
from engine.hardware import HARDWARE, MODELS
from engine.request import Request, SamplingParams
from engine.simulation import job_work, simulate
from tests.engine.planning.requests import prompt_lists

COST = CostModel(MODELS["llama-3.1-8b"], HARDWARE["a100"])


def _requests(prompts, max_tokens=8, ignore_eos=False):
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
    return [
        Request(index, np.array(prompt, dtype=np.int32), sampling) for index, prompt in enumerate(prompts)
    ]


def _literal_job_work(prompts, outputs):
    """Token by token: the nodes of the prefix tree, and per node the longest output below it."""
    nodes: dict[tuple[int, ...], int] = {}
    rows = pairs = reads = 0
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        # The last token of a prompt is its own, whatever others have there.
        keys = [tuple(prompt[:end]) for end in range(1, len(prompt))] + [(index, *prompt, -1)]
        for key in keys:
            nodes[key] = max(nodes.get(key, 0), output - 1)
        rows += output - 1
        pairs += sum(len(prompt) + step for step in range(1, output))
        # Output row n reads the n - 1 outputs before it and itself.
        reads += sum(range(1, output))
    pairs += sum(len(key) - 2 if key[-1] == -1 else len(key) for key in nodes)
    # A run of tokens that only one prompt has is read by that prompt's rows alone: the same rule.
    reads += sum(nodes.values())
    return JobWork(rows + len(nodes), sum(outputs), pairs, reads)


@settings(max_examples=60, deadline=None)
@given(prompt_lists(), st.data())
def test_job_work_is_that_of_the_token_level_tree(prompts, data):
    outputs = data.draw(st.lists(st.integers(1, 8), min_size=len(prompts), max_size=len(prompts)))
    assert job_work(_requests(prompts), outputs) == _literal_job_work(prompts, outputs)


@settings(max_examples=30, deadline=None)
@given(prompt_lists(), st.data())
def test_a_run_samples_each_output_and_takes_at_least_the_optimum(prompts, data):
    outputs = data.draw(st.lists(st.integers(1, 8), min_size=len(prompts), max_size=len(prompts)))
    requests = _requests(prompts)
    run = simulate(requests, outputs, COST, num_pages=64, page_size=2, max_batch_tokens=16)
    assert run.num_prompt_tokens == sum(map(len, prompts))
    assert run.trace.num_rows.sum() == run.num_computed_tokens + sum(outputs) - len(prompts)
    assert run.seconds >= COST.optimum_seconds(job_work(requests, outputs))
    assert (run.trace.kv_tokens >= run.trace.shared_kv_tokens).all()


def test_enough_memory_computes_each_unique_token_once():
    shared = list(range(100))
    requests = _requests([[*shared, 1000 + index] for index in range(10)], ignore_eos=True)
    run = simulate(requests, [8] * 10, COST, num_pages=200, page_size=4, max_batch_tokens=64)
    assert run.num_computed_tokens == 110
    assert run.token_saving == 1 - 110 / 1010
    assert run.trace.valley_share(64) > 0
    assert run.trace.shared_kv_tokens.max() == 100


def test_nothing_to_run_takes_no_time():
    run = simulate([], [], COST, num_pages=8, page_size=4, max_batch_tokens=64)
    assert (run.seconds, run.token_saving, run.trace.valley_share(1)) == (0.0, 0.0, 0.0)
