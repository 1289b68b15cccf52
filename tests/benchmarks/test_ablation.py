"""Every variant of the ablation runs its whole job; without a model here, so only what is computed counts."""

import numpy as np
import pytest

from benchmarks.bench_ablation import VARIANTS, make_job, run
from engine.scheduling.batch import StepTokens


@pytest.fixture(scope="module")
def results():
    requests, lengths = make_job(seed=0)

    def run_step(batch):
        return StepTokens(np.ones(len(batch.request_ids), dtype=np.int32))

    return {name: run(requests, lengths, run_step, variant) for name, variant in VARIANTS.items()}


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"full"}))
def test_no_variant_computes_less_than_the_full_engine(name, results):
    assert results[name]["token_saving"] <= results["full"]["token_saving"]


def test_sharing_is_what_saves(results):
    assert results["no sharing"]["token_saving"] <= 0 < 0.5 < results["full"]["token_saving"]
