"""The guarantee: p values against mapie and exact tails, losses against loops, the sequence by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from llm_rerank.recommendation import risk_control
from llm_rerank.recommendation.risk_control import (
    Guarantee,
    case_losses,
    conditions_of,
    control_risk,
    first_levels,
    hoeffding_bentkus_p_value,
    last_in_sequence,
    mean_losses,
    risk_levels,
)
from llm_rerank.types import Ragged

RISKS = ("missed_target", "false_positives", "false_discovery")

lists_of_candidates = st.lists(
    st.lists(st.tuples(st.sampled_from([np.nan, 0.0, 0.1, 0.2, 0.35, 0.5, 0.9, 1.0]), st.booleans()), max_size=6),
    min_size=1,
    max_size=8,
)


def packed(lists):
    flat = list(itertools.chain.from_iterable(lists))
    lengths = np.array([len(one) for one in lists])
    probabilities = np.array([p for p, _ in flat], dtype=np.float32)
    return (
        probabilities,
        np.array([hit for _, hit in flat], dtype=bool),
        Ragged.from_lengths(np.arange(len(flat)), lengths),
    )


def loss_by_the_book(risk, case, level):
    """One list's loss at one level, in plain words; None where the list is not counted, NaN where not at that level."""
    kept = [(p, hit) for p, hit in case if np.float32(p) >= np.float32(level)]
    wrong = sum(not hit for _, hit in kept)
    if risk == "missed_target":
        if not any(hit for p, hit in case if not math.isnan(p)):
            return None
        return 0.0 if any(hit for _, hit in kept) else 1.0
    if risk == "false_positives":
        return wrong / len(case) if case else 0.0
    return wrong / len(kept) if kept else math.nan


# ------------------------------------------------------------------ p values


@pytest.mark.parametrize("binary", [False, True])
def test_p_values_are_those_of_mapie(binary):
    methods = pytest.importorskip("mapie.risk_control.methods")
    alphas = np.array([0.01, 0.05, 0.1, 0.3, 0.77])
    for n in (1, 7, 20, 300, 4_211):
        # sums of losses: whole ones and others
        sums = np.unique(np.concatenate([np.arange(min(n, 40) + 1), np.linspace(0.013, n, 57)[:-1]]))
        means = sums / n
        theirs = methods.compute_hoeffding_bentkus_p_value(means, n, alphas, binary)
        ours = hoeffding_bentkus_p_value(means[:, None], n, alphas, binary=binary)
        # n × (k / n) may lie a hair above k, where mapie counts one loss more; ours reads k
        hair = np.ceil(n * means) != np.ceil(n * means - 1e-9)
        np.testing.assert_allclose(ours[~hair], theirs[~hair], rtol=1e-9, atol=1e-300)
        assert (ours[hair] <= theirs[hair] * (1 + 1e-9)).all()


def test_a_p_value_by_hand():
    # 2 losses of 10, alpha .5. Hoeffding: exp(-10 (.2 ln .4 + .8 ln 1.6)) = exp(-1.92745) = .145519
    # Bentkus: e × (1 + 10 + 45) / 1024 = .14866; binary without e: 56 / 1024
    assert hoeffding_bentkus_p_value(0.2, 10, 0.5) == pytest.approx(0.145519, abs=1e-6)
    assert hoeffding_bentkus_p_value(0.2, 10, 0.5, binary=True) == pytest.approx(56 / 1024)
    assert hoeffding_bentkus_p_value(0.0, 50, 0.1) == pytest.approx(0.9**50)  # Hoeffding's is the smaller
    assert hoeffding_bentkus_p_value(0.6, 10, 0.5) == 1.0
    assert hoeffding_bentkus_p_value(1.0, 0, 0.1) == 1.0
    assert hoeffding_bentkus_p_value(0.07 * 3, 100, 0.5) == hoeffding_bentkus_p_value(0.21, 100, 0.5)


@pytest.mark.parametrize("n", [1, 20, 400])
@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5])
def test_a_p_value_is_valid_where_the_risk_is_just_too_great(n, alpha):
    """P(p ≤ u) ≤ u for losses of 0 and 1 with mean alpha, summed over all outcomes: exact, no draws."""
    outcomes = np.arange(n + 1)
    chance = binom.pmf(outcomes, n, alpha)
    for binary in (False, True):
        p = hoeffding_bentkus_p_value(outcomes / n, n, alpha, binary=binary)
        for u in (0.01, 0.05, 0.1, 0.3, 0.9):
            assert chance[p <= u].sum() <= u * (1 + 1e-9)
    # the binary one is no weaker than that
    assert p == pytest.approx(np.minimum(binom.cdf(outcomes, n, alpha), 1), abs=1e-9)


# -------------------------------------------------------------------- levels


def test_levels_rise_and_hold_in_both_precisions():
    levels = risk_levels()
    assert len(levels) == 1_000
    assert (np.diff(levels) > 0).all()
    assert (levels == levels.astype(np.float32)).all()
    assert (levels[0], levels[-1]) == (pytest.approx(1e-6), pytest.approx(0.999))
    odds = levels / (1 - levels)
    assert odds[1:] / odds[:-1] == pytest.approx(odds[1] / odds[0], rel=1e-3)


# -------------------------------------------------------------------- losses


@settings(deadline=None)
@given(lists_of_candidates, st.sampled_from(RISKS))
def test_losses_equal_the_plain_words(lists, risk):
    levels = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.95]).astype(np.float32).astype(np.float64)
    probabilities, positive, rows = packed(lists)
    expected = [[loss_by_the_book(risk, case, level) for level in levels] for case in lists]
    expected = [row for row in expected if row[0] is not None]
    found = case_losses(risk, probabilities, positive, rows, levels)
    np.testing.assert_allclose(found, np.reshape(expected, (-1, len(levels))))
    mean, n = mean_losses(risk, probabilities, positive, rows, levels)
    for place, column in enumerate(zip(*expected, strict=True) if expected else [()] * len(levels)):
        counted = [loss for loss in column if not math.isnan(loss)]
        assert n[place] == len(counted)
        assert mean[place] == pytest.approx(np.mean(counted) if counted else 1.0)


@pytest.mark.parametrize("risk", RISKS)
def test_means_do_not_depend_on_the_blocks(risk, monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 200)
    rows = Ragged.from_lengths(rng.integers(0, 50, lengths.sum()), lengths)
    probabilities = rng.random(lengths.sum()).astype(np.float32)
    positive = rng.random(lengths.sum()) < 0.2
    levels = risk_levels()
    whole, n = mean_losses(risk, probabilities, positive, rows, levels)
    monkeypatch.setattr(risk_control, "BLOCK_CELLS", 7 * len(levels))  # 7 lists at a time
    in_blocks, n_in_blocks = mean_losses(risk, probabilities, positive, rows, levels)
    assert n.tolist() == n_in_blocks.tolist()
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-12)


@settings(deadline=None)
@given(lists_of_candidates)
def test_missed_targets_rise_with_the_cut_and_false_positives_fall(lists):
    levels = risk_levels()[::50]
    assert (np.diff(case_losses("missed_target", *packed(lists), levels), axis=1) >= 0).all()
    assert (np.diff(case_losses("false_positives", *packed(lists), levels), axis=1) <= 0).all()


def test_false_discoveries_are_not_monotone():
    # kept from .1: one wrong of two; from .3: one of one; from .6: none, so that the list says nothing there
    lists = [[(0.1, True), (0.5, False)]]
    levels = np.array([0.0625, 0.25, 0.625])
    np.testing.assert_array_equal(case_losses("false_discovery", *packed(lists), levels), [[0.5, 1.0, np.nan]])


# ------------------------------------------------------------------ sequence


def test_the_sequence_stops_at_the_first_level_that_fails():
    # upward: the first two pass; downward: the last one only, whatever passes below the failure
    passed = np.array([True, True, False, True])
    assert last_in_sequence("missed_target", passed) == 1
    assert last_in_sequence("false_positives", passed) == 3
    assert last_in_sequence("false_positives", np.array([False, True, True])) == 1
    for risk in RISKS:
        assert last_in_sequence(risk, np.zeros(3, dtype=bool)) == -1
    both = np.array([[False, True, True], [True, True, True]])
    assert last_in_sequence("missed_target", both).tolist() == [-1, 2]
    assert last_in_sequence("false_positives", both).tolist() == [1, 0]


def test_false_discoveries_are_walked_from_several_starts(monkeypatch):
    monkeypatch.setattr(risk_control, "N_STARTS", 3)
    assert first_levels("false_discovery", 10).tolist() == [3, 6, 9]
    assert first_levels("false_discovery", 1_000)[-1] == 999

    def reached(text):
        return int(last_in_sequence("false_discovery", np.array([mark == "+" for mark in text])))

    assert reached("++++++++++") == 0
    assert reached("..++......") == 2  # from 3 down to 2; above, where nothing is kept, no start passes
    assert reached("+..++.++.+") == 3  # 6, 9 and 3 start; of 4 alone nothing leads down to 3, but 3 is a start
    assert reached("++..++....") == -1  # no start among them: not tested
    assert reached("..........") == -1


def test_control_by_hand():
    # n 50, alpha .1, delta .1. P(Bin(50, .1) ≤ 1) = .0338, ≤ 2: .1117. One miss passes, two do not
    losses = np.array([0.0, 0.02, 0.04, 0.02])
    assert control_risk("missed_target", losses, 50, 0.1, 0.1) == 1
    # with the factor e: e × .0338 = .0919 still passes, and Hoeffding's for .04 is .3 > .1
    assert control_risk("false_positives", losses[::-1], 50, 0.1, 0.1) == 2
    # at delta .05 one miss still passes as a binomial count; a mean of shares has the factor e, and Hoeffding's .077
    assert control_risk("missed_target", losses, 50, 0.1, 0.05) == 1
    assert control_risk("false_positives", losses[::-1], 50, 0.1, 0.05) == 3
    assert control_risk("missed_target", losses, 21, 0.1, 0.1) == -1  # .9^21 = .109
    assert control_risk("missed_target", losses, 22, 0.1, 0.1) == 0  # .9^22 = .098


def test_several_starts_share_delta_and_each_level_counts_its_own_lists(monkeypatch):
    right, many = np.zeros(4), np.array([200, 200, 50, 1])
    # .95^50 = .077: enough for one start at delta .1, and not for one of two; .95^1 never is
    monkeypatch.setattr(risk_control, "N_STARTS", 1)
    assert control_risk("false_discovery", right, many, 0.05, 0.1) == -1  # its one start is the last level
    assert control_risk("false_discovery", right[:3], many[:3], 0.05, 0.1) == 0
    monkeypatch.setattr(risk_control, "N_STARTS", 2)
    assert first_levels("false_discovery", 3).tolist() == [1, 2]
    assert control_risk("false_discovery", right[:3], many[:3], 0.05, 0.1) == 0  # from the middle one
    assert control_risk("false_discovery", right[:3], np.array([200, 50, 200]), 0.05, 0.1) == 2
    assert control_risk("false_discovery", right[:3], np.array([50, 50, 50]), 0.05, 0.1) == -1


def test_the_controller_of_mapie_chooses_the_same_cut_for_missed_targets():
    """Each list as one sample with its best target's probability: the one of our losses that its controllers take."""
    mapie = pytest.importorskip("mapie.risk_control")
    rng = np.random.default_rng(5)
    best = rng.beta(2, 5, 400).astype(np.float32)
    levels = risk_levels()
    controller = mapie.BinaryClassificationController(
        lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
        risk="recall",
        target_level=0.8,
        confidence_level=0.9,
        best_predict_param_choice="recall",
        list_predict_params=levels,
        fwer_method="fixed_sequence",
    ).calibrate(best[:, None].astype(np.float64), np.ones(len(best), dtype=int))
    rows = Ragged.from_lengths(np.arange(400), np.ones(400, dtype=np.int64))
    losses, n = mean_losses("missed_target", best, np.ones(400, dtype=bool), rows, levels)
    place = int(control_risk("missed_target", losses, n, 0.2, 0.1))
    assert 0 < place < len(levels) - 1
    assert levels[place] == controller.valid_predict_params.max()


# ----------------------------------------------------------------- guarantee


@pytest.mark.parametrize("risk", RISKS)
def test_a_guarantee_says_all_that_it_needs(risk):
    guarantee = Guarantee(risk, 0.05, 0.2, 1_234, 0.0312, conditions_of(risk))
    said = guarantee.sentence()
    for words in ("at least 0.8", "1,234 held-out cases", "at most 0.05", "0.0312", "exchangeable", "without a refit"):
        assert words in said
    assert ("with a retrieved target" in said) == (risk == "missed_target")
    assert ("of lists that keep any" in said) == (risk == "false_discovery")
    assert Guarantee.from_dict(guarantee.to_dict()) == guarantee
