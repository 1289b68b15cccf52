import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.lengths import STEPS_BETWEEN_UPDATES, LengthEstimator


def run_job(estimator: LengthEstimator, lengths: np.ndarray, num_steps: int) -> None:
    """All sequences start together and end at `lengths`; the job is looked at after `num_steps`."""
    for step in range(1, num_steps + 1):
        running = lengths[lengths >= step]
        estimator.observe(np.full(len(running), step), running == step)


def test_ignore_eos_means_max_tokens():
    assert LengthEstimator().expected(0, 500, True) == 500


def test_prior_lies_below_a_large_max_tokens_and_near_a_small_one():
    assert LengthEstimator().expected(0, 8, False) == 8
    assert 128 < LengthEstimator().expected(0, 4096, False) < 1024


def test_learns_the_mean_length_of_a_job():
    lengths = np.random.default_rng(0).integers(20, 60, 2000)
    estimator = LengthEstimator()
    run_job(estimator, lengths, 64)
    assert abs(estimator.expected(0, 4096, False) - lengths.mean()) < 4


def test_early_finishers_do_not_pull_the_estimate_down():
    lengths = np.where(np.arange(2000) % 2, 10, 200)
    estimator = LengthEstimator()
    run_job(estimator, lengths, 64)
    # All that finished so far had 10 tokens; the other half is still running.
    assert estimator.expected(0, 4096, False) > 60
    assert estimator.expected(64, 4096, False) > 110


@given(st.integers(1, 400))
def test_equal_lengths_are_learned_to_within_two_bins(length):
    estimator = LengthEstimator()
    run_job(estimator, np.full(2000, length), STEPS_BETWEEN_UPDATES * 26)
    assert length <= estimator.expected(0, 512, False) <= 2**0.5 * length + 1


@given(st.integers(0, 5000), st.integers(1, 5000), st.booleans(), st.floats(0, 6000), st.floats(1e-6, 4))
def test_expected_length_is_above_what_is_there_and_within_the_limit(
    generated, more, ignore_eos, tokens, weight
):
    estimator = LengthEstimator()
    run_job(estimator, np.array([3, 3, 7, 40]), 64)
    limit = generated + more
    expected = estimator.expected(generated, limit, ignore_eos, tokens, weight)
    assert generated < expected <= limit
    many = estimator.expected_of_many(
        np.array([generated]),
        np.array([limit]),
        np.array([ignore_eos]),
        np.array([tokens]),
        np.array([weight]),
    )
    assert many.tolist() == [expected]
