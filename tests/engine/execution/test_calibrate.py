"""The measurement runs and its figures make a usable profile; how large they are is the machine's own."""

import numpy as np

from engine.cost_model import CostModel, ModelShape, StepWork
from engine.execution.calibrate import _nonnegative_fit, calibrate_cpu

TINY = ModelShape(2, 48, 96, 6, 2, 8, 320, tied_embeddings=True)


def test_every_rate_is_positive_and_more_work_takes_longer():
    profile = calibrate_cpu(TINY)
    for curve in (profile.gemm, profile.head, profile.attention):
        assert list(curve.rows) == sorted(set(curve.rows))
        assert min(curve.ops_per_second) > 0
    assert profile.host_seconds_per_step > 0
    assert profile.item_seconds_per_layer >= 0
    cost = CostModel(TINY, profile)

    def seconds(rows, keys):
        columns = (np.array([rows]), np.array([keys]), np.array([rows * keys]), np.zeros(1, dtype=np.int64))
        return cost.step(StepWork(rows, 1, *columns)).total

    assert seconds(1000, 1000) > seconds(1, 1) > 0


def test_the_fit_finds_what_made_the_figures_and_nothing_negative():
    rng = np.random.default_rng(0)
    columns = rng.random((40, 3))
    truth = np.array([2.0, 0.5, 1.0])
    np.testing.assert_allclose(_nonnegative_fit(columns / (columns @ truth)[:, None]), truth, rtol=1e-6)
    opposed = np.stack([np.ones(10), np.full(10, 2.0)], axis=1)
    assert (_nonnegative_fit(opposed) >= 0).all()
