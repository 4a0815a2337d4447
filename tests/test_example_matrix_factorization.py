import re

import numpy as np
import pytest

from examples.matrix_factorization import N_ITEMS, N_NEW, N_USERS, NOISE, RANK, fit_and_measure, main, plant


@pytest.fixture(scope="module")
def outcome():
    return fit_and_measure(plant())


def test_the_truth_has_the_rank_that_is_said():
    ratings = plant().ratings
    assert ratings.shape == (N_USERS + N_NEW, N_ITEMS)
    assert np.linalg.matrix_rank(ratings - 3.0, tol=1e-6) == RANK


def test_the_loss_falls_over_a_hundred_iterations_down_to_the_noise(outcome):
    curve = outcome.loss_curve
    assert len(curve) == 100
    assert np.all(np.diff(curve[[0, 9, 49, 99]]) < 0)
    assert curve[99] < 0.05 * curve[0]
    # the noise alone is 0.04; about 25 fitted numbers a row of 200 ratings take some of it, never most
    assert 0.5 * NOISE**2 < curve[99] < 1.5 * NOISE**2


def test_the_planted_structure_comes_back(outcome):
    # the mean misses by the spread of the truth; what is recovered leaves less than a fifth of it, in variance 4 %
    assert outcome.error_of_model < 0.2 * outcome.error_of_mean


def test_a_new_user_is_placed_from_thirty_ratings(outcome):
    assert outcome.error_of_folded_in < 0.25 * outcome.error_of_mean


def test_a_new_user_is_placed_from_attributes(outcome):
    # attributes carry .64 / (.64 + .16) = 80 % of the variance of a taste; the best possible error is about
    # sqrt(.2) = .45 of the mean's
    assert 0.3 * outcome.error_of_mean < outcome.error_of_attributes < 0.55 * outcome.error_of_mean


def test_it_prints_the_four_losses(outcome, capsys):
    main()
    printed = capsys.readouterr().out
    losses = re.findall(r"iteration +(\d+) +mean squared error (\S+)", printed)
    assert losses == [(str(n), f"{outcome.loss_curve[n - 1]:.4f}") for n in (1, 10, 50, 100)]
    assert f"from attributes alone        {outcome.error_of_attributes:.3f}" in printed
