"""The calibrator: planted truth, order, and silence where there is too little to learn from."""

import json

import numpy as np
import pytest

from llm_rerank.recommendation.blend_columns import shortness
from llm_rerank.recommendation.calibration import LEAST_POSITIVES, LogisticCalibrator, fit_calibrator
from llm_rerank.reliability import expected_calibration_error


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    scores, user, item = rng.normal(0, 2, n), rng.uniform(0, 4, n).astype(np.float32), rng.uniform(0, 6, n)
    linear = -3.0 + 1.2 * scores - 0.5 * user + 0.3 * item
    return scores, user, item.astype(np.float32), rng.random(n) < 1 / (1 + np.exp(-linear))


def test_planted_coefficients_are_found():
    calibrator = fit_calibrator(*drawn(60_000))
    assert calibrator.intercept == pytest.approx(-3.0, abs=0.15)
    assert len(calibrator.knots) == 3
    np.testing.assert_allclose(calibrator.coefficients, [1.2, 1.2, 1.2, 1.2, -0.5, 0.3], atol=0.15)


def bent(n, seed=0):
    """A score whose top tells much more than its bulk."""
    rng = np.random.default_rng(seed)
    scores, nothing = rng.normal(0, 2, n), np.zeros(n, dtype=np.float32)
    linear = -5.0 + 0.2 * scores + 2.5 * np.maximum(scores - 2.5, 0.0)
    return scores, nothing, nothing, rng.random(n) < 1 / (1 + np.exp(-linear))


def test_a_bent_line_holds_where_a_straight_one_does_not():
    scores, user, item, positive = bent(40_000, seed=1)
    top = scores > np.quantile(scores, 0.98)

    def error_of_the_top(**settings):
        p = fit_calibrator(*bent(20_000), **settings).probability(scores, user, item)
        return abs(p[top].mean() - positive[top].mean()) / positive[top].mean()

    assert error_of_the_top() < 0.06 < 0.1 < error_of_the_top(bends=())


def test_a_higher_score_never_has_a_lower_probability():
    rng = np.random.default_rng(3)
    for seed in range(20):  # few positives, no relation at all: the line must still rise
        scores, user, item, _ = drawn(400, seed)
        calibrator = fit_calibrator(scores, user, item, rng.random(400) < 0.3)
        line = calibrator.probability(np.linspace(-8, 8, 500), np.ones(500), np.ones(500))
        assert (np.diff(line) >= 0).all()


def test_scores_that_do_not_vary_say_nothing_of_other_scores():
    _, user, item, positive = drawn(2_000)
    constant = fit_calibrator(np.full(2_000, 7.3), user, item, positive)
    assert constant.coefficients[:-2].tolist() == [0.0] * (len(constant.knots) + 1)
    at = constant.probability(np.array([2.3, 7.3, 12.3]), np.ones(3), np.ones(3))
    assert np.ptp(at) == 0


@pytest.mark.parametrize(("n_positives", "n_knots"), [(39, 0), (40, 1), (99, 1), (100, 3)])
def test_bends_need_positives(n_positives, n_knots):
    scores, user, item, _ = drawn(2_000)
    assert len(fit_calibrator(scores, user, item, np.arange(2_000) < n_positives).knots) == n_knots


def test_a_calibrator_saved_before_there_were_bends_is_read():
    old = LogisticCalibrator.from_dict({"intercept": -1.0, "coefficients": [2.0, 0.5, 0.25], "n_positives": 50})
    assert old.probability(np.array([1.0]), np.ones(1), np.ones(1)) == pytest.approx(1 / (1 + np.exp(-1.75)))


def test_probabilities_hold_on_unseen_cases_where_raw_scores_do_not():
    calibrator = fit_calibrator(*drawn(20_000))
    scores, user, item, positive = drawn(20_000, seed=1)
    probabilities = calibrator.probability(scores, user, item)
    assert expected_calibration_error(probabilities, positive) < 0.01
    raw = 1 / (1 + np.exp(-scores))
    assert expected_calibration_error(raw, positive) > 0.1


def test_a_score_that_ranks_backwards_is_not_turned_over():
    scores, user, item, positive = drawn(5_000)
    assert (fit_calibrator(-scores, user, item, positive).coefficients[:-2] == 0.0).all()


def test_too_few_positives_give_no_probability():
    scores, user, item, _ = drawn(200)
    positive = np.zeros(200, dtype=bool)
    positive[: LEAST_POSITIVES - 1] = True
    assert fit_calibrator(scores, user, item, positive) is None
    assert fit_calibrator(scores, user, item, np.ones(200, dtype=bool)) is None


def test_ten_positives_are_enough_and_nine_are_not():
    scores, user, item, _ = drawn(200)
    assert fit_calibrator(scores, user, item, np.arange(200) < 9) is None
    calibrator = fit_calibrator(scores, user, item, np.arange(200) < 10)
    assert calibrator.n_positives == 10
    # maximum likelihood with an intercept: the mean probability is the base rate
    assert calibrator.probability(scores, user, item).mean() == pytest.approx(10 / 200, abs=1e-4)


def test_a_support_that_is_the_same_everywhere_says_nothing():
    scores, user, _, positive = drawn(5_000)
    same = np.full(len(scores), 2.0, np.float32)
    calibrator = fit_calibrator(scores, user, same, positive)
    assert calibrator.coefficients[-1] == 0.0
    assert np.isfinite(calibrator.intercept)
    assert np.isfinite(calibrator.probability(scores, user, same)).all()


def with_newcomers(n, seed=0):
    """Users of many events by one line, users of none by another, and in between by both as far as they are short."""
    rng = np.random.default_rng(seed)
    scores, item = rng.normal(0, 2, n), rng.uniform(0, 6, n).astype(np.float32)
    events = rng.choice([0, 1, 2, 5, 10, 40, 100], n)
    user, short = np.log1p(events).astype(np.float32), events < 6
    k = shortness(user).astype(float)
    linear = (1 - k) * (-3.0 + 1.2 * scores + 0.3 * item) + k * (0.5 + 0.4 * scores - 0.2 * item)
    return scores, user, item, rng.random(n) < 1 / (1 + np.exp(-linear)), short, linear


def test_newcomers_have_a_line_of_their_own_that_fades_out():
    *drawn_lists, short, _ = with_newcomers(60_000)
    calibrator = fit_calibrator(*drawn_lists, short=short)
    own, others = calibrator.newcomers, calibrator
    assert own.intercept == pytest.approx(0.5, abs=0.25)
    np.testing.assert_allclose(own.coefficients[[0, 1, 2, 3, 5]], [0.4, 0.4, 0.4, 0.4, -0.2], atol=0.15)
    np.testing.assert_allclose(others.coefficients[[0, 1, 2, 3, 5]], [1.2, 1.2, 1.2, 1.2, 0.3], atol=0.25)
    scores, user, item, positive, short, linear = with_newcomers(20_000, seed=1)
    found = calibrator.probability(scores, user, item)
    truth = 1 / (1 + np.exp(-linear))
    np.testing.assert_allclose(found, truth, atol=0.05)
    for n_events in (0, 1, 5, 40):
        asked = user == np.float32(np.log1p(n_events))
        assert found[asked].mean() == pytest.approx(truth[asked].mean(), abs=0.015)
    line = fit_calibrator(*(values[~short] for values in (scores, user, item, positive)))
    newcomers = user == 0
    too_low = line.probability(scores, user, item)[newcomers].mean()
    assert too_low < 0.8 * positive[newcomers].mean()  # what one line of long histories says of them
    # a higher score never means less, at any history; JSON keeps both lines
    for n_events in (0, 3, 50):
        same = np.full(400, np.log1p(n_events), np.float32)
        assert (np.diff(calibrator.probability(np.linspace(-9, 9, 400), same, np.ones(400))) >= 0).all()
    again = LogisticCalibrator.from_dict(json.loads(json.dumps(calibrator.to_dict())))
    np.testing.assert_array_equal(again.probability(scores, user, item), found)


def test_short_histories_teach_from_ten_positives_on():
    scores, user, item, positive, short, _ = with_newcomers(5_000)
    alone = fit_calibrator(*(values[~short] for values in (scores, user, item, positive)))

    def with_short_positives(n):
        kept = positive & ~short
        kept[np.flatnonzero(positive & short)[:n]] = True
        return fit_calibrator(scores, user, item, kept, short=short)

    assert with_short_positives(9).to_dict() == alone.to_dict()
    assert with_short_positives(10).newcomers is not None
    assert with_short_positives(10).n_positives == alone.n_positives
    # and they do not make few of the others enough
    few = positive & short
    few[np.flatnonzero(positive & ~short)[:9]] = True
    assert fit_calibrator(scores, user, item, few, short=short) is None


def test_unknown_score_has_unknown_probability_and_json_keeps_all():
    calibrator = fit_calibrator(*drawn(2_000))
    again = LogisticCalibrator.from_dict(calibrator.to_dict())
    scores = np.array([np.nan, 1.0, -900.0])
    values = again.probability(scores, np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert np.isnan(values[0])
    assert values[2] == 0.0
    np.testing.assert_array_equal(values, calibrator.probability(scores, np.zeros(3), np.zeros(3)))
