"""The jobs and the command line of the simulator."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.jobs import JOBS
from benchmarks.simulate import ORDERING, SHARING, bounds, cost_model, figures, run_policy

RANDOM_JOBS = sorted(set(JOBS) - {"logiqa", "spider_sql", "mazes"})  # the others need the network once


@pytest.mark.parametrize("name", RANDOM_JOBS)
def test_jobs_are_the_same_for_the_same_seed_and_keep_their_columns_together(name):
    job, again = (JOBS[name](seed=1, scale=0.01) for _ in range(2))
    assert [prompt.tobytes() for prompt in job.prompts] == [prompt.tobytes() for prompt in again.prompts]
    assert len(job.prompts) == len(job.output_lengths) == len(job.requests())
    ordered = job.sorted()
    total = (sum(map(len, job.prompts)), int(job.output_lengths.sum()))
    assert (sum(map(len, ordered.prompts)), int(ordered.output_lengths.sum())) == total


def test_ours_reaches_the_bound_and_no_rival_is_ahead():
    job, cost = JOBS["hierarchy"](seed=0, scale=0.1), cost_model("a100", "llama-3.1-8b")
    memory = 20_000 * cost.kv_bytes_per_token
    job_bounds = bounds(job, cost)
    ours = figures(run_policy(job, "batchllm", cost, kv_memory_bytes=memory), cost, job_bounds)
    assert ours["saving_of_bound"] == 1.0
    for rival in ("lru", "lru-1024-sorted", "lpm"):
        theirs = figures(run_policy(job, rival, cost, kv_memory_bytes=memory), cost, job_bounds)
        assert theirs["token_saving"] <= ours["token_saving"]
        assert theirs["seconds"] >= ours["seconds"]


@pytest.mark.parametrize("sharing", SHARING)
def test_every_pair_of_policies_runs_the_whole_job(sharing):
    job, cost = JOBS["spread"](seed=0, scale=0.01), cost_model("a100", "llama-3.1-8b")
    for order in ORDERING:
        run = run_policy(job, f"{sharing}/{order}", cost, kv_memory_bytes=9_000 * cost.kv_bytes_per_token)
        assert run.trace.num_rows.sum() >= run.num_computed_tokens
        assert run.num_refused == 0
        assert run.num_prompt_tokens == sum(map(len, job.prompts))


def test_the_last_line_is_the_json_object_and_the_plot_a_png(tmp_path):
    plot = tmp_path / "valleys.png"
    command = [
        sys.executable,
        "-m",
        "benchmarks.simulate",
        "--workload",
        "micro",
        "--scale",
        "0.005",
        "--json",
    ]
    one = subprocess.run([*command, "--policy", "lru"], check=True, capture_output=True, text=True)
    figures = json.loads(one.stdout)
    assert {"token_saving", "seconds", "optimum_seconds", "steps", "peak_kv_bytes"} <= figures.keys()
    two = [*command, "--policy", "lru", "batchllm", "--plot", str(plot)]
    done = subprocess.run(two, check=True, capture_output=True, text=True)
    assert [row["policy"] for row in json.loads(done.stdout.splitlines()[-1])] == ["lru", "batchllm"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert np.isfinite(figures["seconds"])
