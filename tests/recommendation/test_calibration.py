"""Platt scaling: planted truth, order, and silence where there is too little to learn from."""

import numpy as np
import pytest

from llm_rerank.recommendation.calibration import LEAST_POSITIVES, PlattCalibrator, fit_platt
from llm_rerank.reliability import expected_calibration_error


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    scores, user, item = rng.normal(0, 2, n), rng.uniform(0, 4, n).astype(np.float32), rng.uniform(0, 6, n)
    linear = -3.0 + 1.2 * scores - 0.5 * user + 0.3 * item
    return scores, user, item.astype(np.float32), rng.random(n) < 1 / (1 + np.exp(-linear))


def test_planted_coefficients_are_found():
    calibrator = fit_platt(*drawn(60_000))
    assert calibrator.intercept == pytest.approx(-3.0, abs=0.15)
    np.testing.assert_allclose(calibrator.coefficients, [1.2, -0.5, 0.3], atol=0.06)


def test_probabilities_hold_on_unseen_cases_where_raw_scores_do_not():
    calibrator = fit_platt(*drawn(20_000))
    scores, user, item, positive = drawn(20_000, seed=1)
    probabilities = calibrator.probability(scores, user, item)
    assert expected_calibration_error(probabilities, positive) < 0.01
    raw = 1 / (1 + np.exp(-scores))
    assert expected_calibration_error(raw, positive) > 0.1


def test_a_score_that_ranks_backwards_is_not_turned_over():
    scores, user, item, positive = drawn(5_000)
    assert fit_platt(-scores, user, item, positive).coefficients[0] == 0.0


def test_too_few_positives_give_no_probability():
    scores, user, item, _ = drawn(200)
    positive = np.zeros(200, dtype=bool)
    positive[: LEAST_POSITIVES - 1] = True
    assert fit_platt(scores, user, item, positive) is None
    assert fit_platt(scores, user, item, np.ones(200, dtype=bool)) is None


def test_ten_positives_are_enough_and_nine_are_not():
    scores, user, item, _ = drawn(200)
    assert fit_platt(scores, user, item, np.arange(200) < 9) is None
    calibrator = fit_platt(scores, user, item, np.arange(200) < 10)
    assert calibrator.n_positives == 10
    # maximum likelihood with an intercept: the mean probability is the base rate
    assert calibrator.probability(scores, user, item).mean() == pytest.approx(10 / 200, abs=1e-4)


def test_a_support_that_is_the_same_everywhere_says_nothing():
    scores, user, _, positive = drawn(5_000)
    same = np.full(len(scores), 2.0, np.float32)
    calibrator = fit_platt(scores, user, same, positive)
    assert calibrator.coefficients[2] == 0.0
    assert np.isfinite(calibrator.intercept)
    assert np.isfinite(calibrator.probability(scores, user, same)).all()


def test_unknown_score_has_unknown_probability_and_json_keeps_all():
    calibrator = fit_platt(*drawn(2_000))
    again = PlattCalibrator.from_dict(calibrator.to_dict())
    scores = np.array([np.nan, 1.0, -900.0])
    values = again.probability(scores, np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert np.isnan(values[0])
    assert values[2] == 0.0
    np.testing.assert_array_equal(values, calibrator.probability(scores, np.zeros(3), np.zeros(3)))
