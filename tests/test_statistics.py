"""Tests and intervals against hand arithmetic and against what they promise: error rates and coverage, simulated."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank import statistics
from llm_rerank.types import DataError


def test_randomization_test_by_hand() -> None:
    # differences 1, 2, 3: of 8 sign patterns only +++ and --- reach |sum| = 6: p = 2/8
    assert statistics.paired_randomization_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) == 0.25
    # differences 1, 1, -1: |sum| = 1 is reached by every pattern: p = 1
    assert statistics.paired_randomization_test([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]) == 1.0
    # equal cases change nothing: still 2/8
    assert statistics.paired_randomization_test([1.0, 5.0, 2.0, 3.0, 5.0], [0.0, 5.0, 0.0, 0.0, 5.0]) == 0.25
    assert statistics.paired_randomization_test([1.0, 2.0], [1.0, 2.0]) == 1.0


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_randomization_test_counts_sign_patterns_as_the_definition_does(differences: list[int]) -> None:
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    expected = np.mean([total >= observed for total in sums])
    assert statistics.paired_randomization_test(
        np.array(differences) / 10, np.zeros(len(differences))
    ) == pytest.approx(expected)


def test_drawn_signs_agree_with_all_signs() -> None:
    a, b = np.random.default_rng(3).normal(0.35, 1.0, (2, 13)) * np.array([[1.0], [0.0]])
    exact = statistics.paired_randomization_test(a, b, n_resamples=2**13)
    drawn = statistics.paired_randomization_test(a, b, n_resamples=2**13 - 1, seed=5)
    # standard error of the drawn p is at most sqrt(.25 / 8191) = .0055
    assert drawn == pytest.approx(exact, abs=0.02)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    from scipy.stats import kstest

    rng = np.random.default_rng(7)
    ps = []
    for trial in range(400):
        # skewed and full of zeros, as NDCG of single targets is
        a, b = rng.exponential(size=(2, 60)) * (rng.random((2, 60)) < 0.4)
        ps.append(statistics.paired_randomization_test(a, b, n_resamples=999, seed=trial))
    assert kstest(ps, "uniform").pvalue > 0.01
    assert np.mean(np.array(ps) <= 0.05) <= 0.08  # 3 standard errors above .05


def test_a_real_difference_is_found_and_is_symmetric() -> None:
    rng = np.random.default_rng(8)
    b = rng.random(500)
    a = b + rng.normal(0.1, 0.3, 500)
    difference = statistics.paired_difference(a, b)
    assert difference.p == pytest.approx(1 / 10_001)  # the least that 10,000 draws can give
    assert difference.low < 0.1 < difference.high
    assert difference.mean == pytest.approx(np.mean(a - b))
    assert difference.n == 500
    other_way = statistics.paired_difference(b, a)
    assert other_way.mean == -difference.mean
    # mirrored up to the interpolation of the quantiles
    assert (other_way.low, other_way.high) == pytest.approx((-difference.high, -difference.low), abs=1e-9)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(500):
        values = rng.exponential(1.0, 150)
        interval = statistics.bootstrap_interval(values, n_resamples=500, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    # 95 % nominal; percentile intervals of a skewed mean fall a little short; 3 standard errors are .03
    assert 0.91 <= covered / 500 <= 0.98


def test_bootstrap_interval_has_the_width_of_the_normal_one_on_many_cases() -> None:
    values = np.random.default_rng(12).normal(2.0, 3.0, 5_000)
    interval = statistics.bootstrap_interval(values, n_resamples=4_000)
    half = 1.959964 * values.std() / 5_000**0.5
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    narrower = statistics.bootstrap_interval(values, confidence=0.5, n_resamples=4_000)
    assert narrower.high - narrower.low == pytest.approx(2 * half * 0.67449 / 1.959964, rel=0.1)


def test_bootstrap_of_few_distinct_values_is_the_bootstrap_of_a_share() -> None:
    # 30 % ones among 2,000: resampled means are Binomial(2000, .3) / 2000, sd sqrt(.21 / 2000) = .010247
    values = np.repeat([0.0, 1.0], [1_400, 600])
    interval = statistics.bootstrap_interval(values, n_resamples=20_000)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - 1.96 * 0.010247, abs=0.0008)
    assert interval.high == pytest.approx(0.3 + 1.96 * 0.010247, abs=0.0008)
    # shaken a little all values are distinct, and single cases are drawn: the same interval
    shaken = statistics.bootstrap_interval(values + np.linspace(0, 1e-9, 2_000), n_resamples=20_000, seed=1)
    assert (shaken.low, shaken.high) == pytest.approx((interval.low, interval.high), abs=0.0008)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(100)
    assert statistics.bootstrap_interval(values, seed=4) == statistics.bootstrap_interval(values, seed=4)
    assert statistics.bootstrap_interval(values, seed=4) != statistics.bootstrap_interval(values, seed=5)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 × 4 3 2 1 = .04 .06 .06 .04, kept from falling: .04 .06 .06 .06
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert statistics.holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_holm_lies_between_the_raw_p_and_bonferroni_and_keeps_order(ps: list[float]) -> None:
    raw, adjusted = np.array(ps), statistics.holm(ps)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(raw * len(ps), 1.0) + 1e-12).all()
    assert adjusted.min() == pytest.approx(min(1.0, raw.min() * len(ps)))
    order = np.argsort(raw, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(2)
    wrong = [statistics.holm(rng.random(10)).min() <= 0.05 for _ in range(4_000)]
    # exactly 1 − (1 − .05/10)^10 = .0489 for independent tests; 3 standard errors are .01
    assert np.mean(wrong) == pytest.approx(0.0489, abs=0.0105)


def test_lower_bound_by_hand() -> None:
    # 200 cases of ±.1 about .05: sd = .1·sqrt(200/199) = .100251; t(.95, 199) = 1.652547
    # half width 1.652547 · .100251 / sqrt(200) = .011715; unseen losses 1 − .05^(1/200) = .014867 are the wider
    values = 0.05 + 0.1 * np.tile([-1.0, 1.0], 100)
    assert statistics.lower_bound(values) == pytest.approx(0.05 - 0.014867, abs=1e-6)
    # ± .2: half width twice as wide, .023430, now the wider
    assert statistics.lower_bound(0.05 + 0.2 * np.tile([-1.0, 1.0], 100)) == pytest.approx(0.05 - 0.023430, abs=1e-6)


def test_a_few_equal_values_prove_nothing() -> None:
    assert not statistics.non_inferior(np.zeros(20), margin=0.02)
    assert not statistics.non_inferior(np.zeros(1), margin=0.02)
    assert statistics.non_inferior(np.zeros(200), margin=0.02)


def test_non_inferiority_errs_rarely_at_the_margin_and_sees_equality() -> None:
    rng = np.random.default_rng(21)
    margin, n = 0.02, 400
    # rank changes of single targets: most cases do not differ, some win .3, some lose .3
    wrong = right = 0
    for _ in range(2_000):
        draw = rng.random(n)
        losing, equal = (
            np.where(draw < up, 0.3, np.where(draw > 1 - down, -0.3, 0.0))
            for up, down in ((0.05, 0.05 + margin / 0.3), (0.06, 0.06))
        )
        wrong += statistics.non_inferior(losing, margin=margin)
        right += statistics.non_inferior(equal, margin=margin)
    assert wrong / 2_000 <= 0.065  # .05 nominal, 3 standard errors are .015
    # power: sd of a case .104, standard error .0052, bound .0086 below the mean: P(Z > (.0086 − .02)/.0052) = .986
    assert right / 2_000 >= 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.bootstrap_interval([]), "values has shape"),
        (lambda: statistics.bootstrap_interval([0.1, np.nan]), "1 values that are NaN or infinite; leave cases"),
        (lambda: statistics.bootstrap_interval([0.1], confidence=95), "confidence is 95"),
        (lambda: statistics.paired_difference([0.1], [0.1, 0.2]), "a has 1 cases and b 2"),
        (lambda: statistics.holm([0.1, 1.2]), r"must lie in \[0, 1\]"),
        (lambda: statistics.non_inferior([0.1], margin=-0.1), "margin is -0.1"),
    ],
)
def test_errors_name_value_rule_and_remedy(call, message: str) -> None:  # noqa: ANN001
    with pytest.raises(DataError, match=message):
        call()


def test_another_than_the_first_is_chosen_only_where_it_is_better_by_more_than_an_error():
    rng = np.random.default_rng(0)
    first = rng.uniform(size=400)
    noise = rng.normal(0, 0.1, 400) - rng.normal(0, 0.1, 400)
    level = noise - noise.mean()
    error = level.std(ddof=1) / 20
    assert statistics.first_unless_beaten(np.stack([first, first + level + 0.9 * error])) == 0
    assert statistics.first_unless_beaten(np.stack([first, first + level + 1.1 * error])) == 1
    # of several the best mean, not the surest
    assert statistics.first_unless_beaten(np.stack([first, first + 0.001, first + level + 2 * error])) == 2
    assert statistics.first_unless_beaten(np.stack([first, first - 1, first - 2])) == 0
    assert statistics.first_unless_beaten(np.zeros((3, 0))) == 0
