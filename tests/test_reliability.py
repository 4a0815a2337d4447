"""Calibration metrics against hand arithmetic, against scikit-learn, and their intervals against the bootstrap."""

import numpy as np
import pytest

from llm_rerank import reliability
from llm_rerank.types import DataError


def test_calibration_error_by_hand() -> None:
    # two bins of two: means .1 and .75, observed 0 and .5: (2·|0 − .1| + 2·|.5 − .75|) / 4 = .175
    p, y = np.array([0.7, 0.05, 0.8, 0.15]), np.array([True, False, False, False])
    assert reliability.expected_calibration_error(p, y, 2) == pytest.approx(0.175)
    bins = reliability.reliability_bins(p, y, 2)
    assert bins.counts.tolist() == [2, 2]
    assert bins.probability == pytest.approx([0.1, 0.75])
    assert bins.observed == pytest.approx([0.0, 0.5])


def test_equal_probabilities_share_a_bin_in_any_order() -> None:
    # a constant is perfectly calibrated at the rate; bins that split ties would see order, not calibration
    y = np.array([True] * 3 + [False] * 7)
    assert reliability.expected_calibration_error(np.full(10, 0.3), y, 5) == pytest.approx(0.0)
    rng = np.random.default_rng(0)
    p, y = rng.integers(0, 4, 200) / 4, rng.random(200) < 0.4
    order = rng.permutation(200)
    assert reliability.expected_calibration_error(p, y) == pytest.approx(
        reliability.expected_calibration_error(p[order], y[order])
    )


def test_brier_by_hand() -> None:
    p, y = np.array([0.8, 0.4]), np.array([True, False])
    # (.2² + .4²) / 2 = .1; reference at rate .5: .25; skill 1 − .1/.25 = .6
    assert reliability.brier_score(p, y) == pytest.approx(0.1)
    assert reliability.brier_skill(p, y) == pytest.approx(0.6)
    assert reliability.brier_skill(np.array([0.5, 0.5]), y) == pytest.approx(0.0)
    # against a base rate of .1 from elsewhere: reference (.9² + .1²) / 2 = .41
    assert reliability.brier_skill(p, y, base_rate=0.1) == pytest.approx(1 - 0.1 / 0.41)
    assert np.isnan(reliability.brier_skill(p, np.array([False, False])))


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, -0.7), (2.0, 0.3)])
def test_calibration_line_recovers_the_line_that_made_the_outcomes(slope: float, intercept: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(-1.0, 1.5, 200_000)
    y = rng.random(200_000) < 1 / (1 + np.exp(-(intercept + slope * logits)))
    line = reliability.calibration_line(1 / (1 + np.exp(-logits)), y)
    # standard errors at this n are about .01
    assert line.slope == pytest.approx(slope, abs=0.04)
    assert line.intercept == pytest.approx(intercept, abs=0.04)


def test_calibration_line_agrees_with_an_unpenalised_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    p = rng.beta(0.5, 20.0, 500)
    y = rng.random(500) < np.minimum(3 * p, 1.0)
    line = reliability.calibration_line(p, y)
    logits = np.log(p / (1 - p))[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(logits, y)
    assert line.slope == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert line.intercept == pytest.approx(model.intercept_[0], abs=1e-4)


@pytest.mark.parametrize(
    ("p", "y"),
    [
        ([0.1, 0.2, 0.8], [False, False, True]),  # separated
        ([0.9, 0.2, 0.3], [False, True, True]),  # separated the wrong way round
        ([0.1, 0.5, 0.5, 0.9], [False, False, True, True]),  # separated but for a tie
        ([0.2, 0.5], [True, True]),  # one outcome
        ([0.3, 0.3, 0.3], [True, False, False]),  # one probability
    ],
)
def test_calibration_line_is_unknown_where_no_finite_one_exists(p: list[float], y: list[bool]) -> None:
    line = reliability.calibration_line(np.array(p), np.array(y))
    assert np.isnan(line.slope)
    assert np.isnan(line.intercept)


def test_impossible_probabilities_are_named() -> None:
    with pytest.raises(DataError, match=r"2 probabilities lie outside \[0, 1\] \(first: 1.5\)"):
        reliability.brier_score(np.array([0.5, 1.5, np.nan]), np.array([True, False, True]))


def test_the_floor_of_the_error_is_what_perfect_probabilities_show() -> None:
    rng = np.random.default_rng(3)
    p = rng.beta(1.0, 40.0, 20_000)
    errors = [reliability.expected_calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
    floor = reliability.calibration_error_of_noise(p, np.zeros(len(p), dtype=bool))
    assert floor == pytest.approx(np.mean(errors), rel=0.05)


def lists_that_hang_together(rng: np.random.Generator, n: int = 400, length: int = 30) -> tuple[np.ndarray, ...]:
    """Lists of candidates whose chances share a shift that the probabilities know nothing of."""
    logits = rng.normal(-3.0, 1.0, (n, length))
    shift = rng.normal(0.0, 1.5, (n, 1))
    y = rng.random((n, length)) < 1 / (1 + np.exp(-(logits + shift)))
    return 1 / (1 + np.exp(-logits.ravel())), y.ravel(), np.repeat(np.arange(n), length)


def test_the_error_of_the_slope_is_that_of_whole_lists() -> None:
    lines = []
    rng = np.random.default_rng(4)
    for _ in range(200):
        lines.append(reliability.calibration_line(*lists_that_hang_together(rng)))
    spread = np.std([line.slope for line in lines])
    assert np.mean([line.slope_error for line in lines]) == pytest.approx(spread, rel=0.15)
    intercepts = np.std([line.intercept for line in lines])
    assert np.mean([line.intercept_error for line in lines]) == pytest.approx(intercepts, rel=0.15)
    # candidates taken one by one would promise too much
    p, y, cases = lists_that_hang_together(rng)
    alone = reliability.calibration_line(p, y)
    assert alone.intercept_error < 0.9 * reliability.calibration_line(p, y, cases).intercept_error
    low, high = alone.slope_interval
    assert (low + high) / 2 == pytest.approx(alone.slope)


def test_the_interval_of_the_brier_skill_is_that_of_whole_lists() -> None:
    rng = np.random.default_rng(5)
    p, y, cases = lists_that_hang_together(rng)
    found = reliability.brier_skill_interval(p, y, cases, seed=1)
    assert found.mean == pytest.approx(reliability.brier_skill(p, y))
    assert found.n == 400
    skills = [reliability.brier_skill(*lists_that_hang_together(rng)[:2]) for _ in range(300)]
    low, high = np.quantile(skills, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.3)
    nothing = reliability.brier_skill_interval(p, np.zeros(len(y), dtype=bool), cases)
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()
