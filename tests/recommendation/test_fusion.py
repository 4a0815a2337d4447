"""The conditional logit, its prior and its guard: derivatives, closed forms, planted truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from llm_rerank.data.missing import Standardizer
from llm_rerank.models.conditional_logit import conditional_log_likelihood, fit_conditional_logit
from llm_rerank.recommendation.blend_columns import CLIP, LINEAR, column_label, columns_of_rungs, design_columns
from llm_rerank.recommendation.candidates import is_member, ndcg_of
from llm_rerank.recommendation.cross_fitting import Lists
from llm_rerank.recommendation.fusion import Blend, fit_fusion, shares_of_rungs
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND, RUNGS, GuardVerdict, judge
from llm_rerank.types import Ragged


def planted(n_cases, weights, seed=0, n_candidates=20):
    """Lists whose target is drawn from softmax(design · weights): the logit's own truth."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n_cases * n_candidates, len(weights))).astype(np.float32)
    logits = (design @ np.asarray(weights)).reshape(n_cases, n_candidates)
    drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    rows = Ragged.from_lengths(
        np.tile(np.arange(n_candidates), n_cases), np.full(n_cases, n_candidates, dtype=np.int64)
    )
    return design, rows, Ragged.from_lengths(drawn.astype(np.int64), np.ones(n_cases, dtype=np.int64))


def test_log_likelihood_by_hand():
    # two candidates with scores 0 and ln 3: softmax is 1/4 and 3/4; the positive is the second
    design = np.array([[0.0], [np.log(3.0)]])
    rows = Ragged.from_lists([[0, 1]])
    value, gradient, hessian = conditional_log_likelihood(np.ones(1), design, rows, np.array([False, True]))
    assert value == pytest.approx(np.log(0.75))
    # x_positive − mean = ln3 − 0.75 ln3; −variance = −(0.75 · 0.25) (ln3)²
    assert gradient[0] == pytest.approx(0.25 * np.log(3.0))
    assert hessian[0, 0] == pytest.approx(-0.1875 * np.log(3.0) ** 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_gradient_and_hessian_are_the_derivatives(seed):
    rng = np.random.default_rng(seed)
    rows = Ragged.from_lengths(np.arange(9), np.array([4, 2, 3]))
    design = rng.normal(size=(9, 3))
    positive = np.array([1, 0, 1, 0, 0, 1, 1, 0, 0], dtype=bool)  # the first case has two positives
    point = rng.normal(size=3)

    def value(weights):
        return conditional_log_likelihood(weights, design, rows, positive)[0]

    def gradient(weights):
        return conditional_log_likelihood(weights, design, rows, positive)[1]

    assert check_grad(value, gradient, point) < 1e-5
    hessian = conditional_log_likelihood(point, design, rows, positive)[2]
    step = 1e-6
    numeric = np.stack(
        [(gradient(point + step * axis) - gradient(point - step * axis)) / (2 * step) for axis in np.eye(3)]
    )
    np.testing.assert_allclose(hessian, numeric, atol=1e-6)


def test_planted_weights_are_found_and_the_penalty_draws_to_the_prior():
    truth = np.array([1.5, -0.7, 0.0])
    design, rows, targets = planted(3_000, truth)
    positive = is_member(rows, targets, 20)
    loose = fit_conditional_logit(design, rows, positive, prior=np.zeros(3), penalty=1e-6)
    np.testing.assert_allclose(loose, truth, atol=0.1)
    prior = np.array([0.3, 0.3, 0.3])
    tight = fit_conditional_logit(design, rows, positive, prior=prior, penalty=1e8)
    np.testing.assert_allclose(tight, prior, atol=1e-3)


def test_cases_without_a_positive_change_nothing():
    design, rows, targets = planted(200, [1.0, 0.5])
    positive = is_member(rows, targets, 20)
    alone = fit_conditional_logit(design, rows, positive, prior=np.zeros(2), penalty=1.0)
    more = np.concatenate([design, design[:20] * 100])
    longer = Ragged.from_lengths(np.append(rows.values, rows.values[:20]), np.append(rows.lengths, 20))
    with_empty = fit_conditional_logit(
        more, longer, np.append(positive, np.zeros(20, bool)), prior=np.zeros(2), penalty=1.0
    )
    np.testing.assert_allclose(alone, with_empty, atol=1e-6)


def test_contributions_add_up_to_the_score_and_survive_json():
    blend = Blend(("a", "b"), np.array([2.0, -1.0]), "a", 3.0)
    design = np.array([[1.0, 4.0], [0.5, 0.0]], dtype=np.float32)
    assert blend.score(design).tolist() == [-2.0, 1.0]  # 2·1 − 4, 2·0.5 − 0
    np.testing.assert_array_equal(blend.contributions(design).sum(axis=1), blend.score(design))
    again = Blend.from_dict(blend.to_dict())
    np.testing.assert_array_equal(again.weights, blend.weights)
    assert (again.names, again.default, again.penalty) == (blend.names, "a", 3.0)


def test_design_fills_unknown_scores_and_centres_supports():
    scores = np.array([[4.0], [np.nan], [-9.0]], dtype=np.float32)
    cap = np.log1p(40.0)
    user, item = np.array([0.0, cap, cap]), np.array([2 * cap, cap, cap / 2])
    linear = Standardizer.from_dict({"means": [1.0], "scales": [2.0]})
    design, names = design_columns(scores, ["a"], linear, np.empty((3, 0), np.float32), (), user, item)
    both = ("a", "a (linear)")
    assert names == (*both, *(f"{name} × user_support" for name in both), *(f"{name} × item_support" for name in both))
    # √4 = 2, −√9 = −3; support 0 is −0.5, half the cap 0, the cap and all above +0.5; unknown is 0 throughout
    np.testing.assert_allclose(design[:, ::2], [[2.0, -1.0, 1.0], [0.0, 0.0, 0.0], [-3.0, -1.5, 0.0]], atol=1e-6)
    # (4 − 1) / 2 = 1.5, (−9 − 1) / 2 = −5
    np.testing.assert_allclose(design[:, 1::2], [[1.5, -0.75, 0.75], [0.0, 0.0, 0.0], [-5.0, -2.5, 0.0]], atol=1e-6)
    without, names = design_columns(scores * 10, ["a"], linear, np.empty((3, 0), np.float32), (), np.zeros(3), None)
    assert names == (*both, *(f"{name} × user_support" for name in both))
    assert without[:, 1].tolist() == [(CLIP - 1) / 2, 0.0, (-CLIP - 1) / 2]
    assert [column_label(name) for name in names] == ["a", "a", "a × user_support", "a × user_support"]


def run(design, rows, targets, names=("good", "noise"), **options):
    """Fit on columns that are the same in both forms."""
    positive = is_member(rows, targets, 20)
    chosen = {"default": None, "start": None, "seed": 0, **options}
    columns = (*names, *(f"{name}{LINEAR}" for name in names))
    return fit_fusion(Lists.of_cases(np.tile(design, 2), columns, list(names), rows, positive, targets), **chosen)


def weights_of(blend):
    """Weights of both forms of each component together."""
    return blend.weights.reshape(2, -1).sum(axis=0)


def test_blend_of_two_halves_of_the_truth_beats_the_better_half():
    design, rows, targets = planted(800, [1.5, 1.2], seed=1)
    fit = run(design, rows, targets, names=("first", "second"))
    assert fit.blend.default == "first"
    assert fit.verdict.shares["prior"] < 0.01  # the second half is worth many standard errors
    assert fit.verdict.kept_blend
    assert fit.verdict.difference.low > 0.05  # two sources of equal worth: the gain is large and certain
    assert fit.verdict.non_inferior
    np.testing.assert_allclose(weights_of(fit.blend), [1.5, 1.2], atol=0.25)


def test_noise_beside_the_truth_does_no_harm():
    design, rows, targets = planted(400, [2.0, 0.0], seed=2)
    fit = run(design, rows, targets)
    assert fit.blend.default == "good"
    good, noise = weights_of(fit.blend)
    assert good == pytest.approx(2.0, abs=0.3)
    assert abs(noise) < 0.15
    assert fit.verdict.difference.mean > -fit.verdict.margin


def test_shares_fall_with_the_distance_in_standard_errors():
    # 4 cases; the second rung gains 1, 1, 1, −1: mean .5, deviation 1, standard error .5, so a distance of 1
    first = np.zeros(4)
    by_rung = np.stack([first, np.array([1.0, 1.0, 1.0, -1.0])])
    np.testing.assert_allclose(shares_of_rungs(by_rung, 1.0), np.array([np.exp(-1), 1.0]) / (1 + np.exp(-1)))
    np.testing.assert_allclose(shares_of_rungs(by_rung, 2.0), np.array([np.exp(-2), 1.0]) / (1 + np.exp(-2)))
    np.testing.assert_allclose(shares_of_rungs(by_rung, 0.0), [0.5, 0.5])
    np.testing.assert_allclose(shares_of_rungs(by_rung, np.inf), [0.0, 1.0])
    # worse in every case by the same: no error, no share; exactly as good: an equal share
    np.testing.assert_allclose(shares_of_rungs(np.stack([first, first - 0.01, first]), 1.0), [0.5, 0.0, 0.5])


def test_the_verdict_shows_every_rung():
    design, rows, targets = planted(600, [1.5, 1.2], seed=4)
    fit = run(design, rows, targets, names=("first", "second"))
    assert list(fit.verdict.rungs) == list(fit.verdict.shares) == list(RUNGS)
    best = max(fit.verdict.rungs, key=fit.verdict.rungs.get)
    assert fit.verdict.shares[best] == max(fit.verdict.shares.values())
    assert sum(fit.verdict.shares.values()) == pytest.approx(1.0)
    for value in fit.verdict.rungs.values():
        assert f"{value:.4f}" in fit.verdict.sentence()


def judged(blend, default):
    return judge(np.stack([default, *[blend] * 7]), np.full(8, 0.125), blend, default, "als", seed=0)


def test_guard_falls_back_where_the_blend_loses():
    default = np.full(500, 0.21)
    verdict = judged(np.full(500, 0.20), default)  # −0.01 is −4.8 % of .21, margin 2 %
    assert not verdict.kept_blend
    assert "als alone ranks" in verdict.sentence()
    kept = judged(np.full(500, 0.209), default)  # −0.5 %: within the margin
    assert kept.kept_blend
    assert GuardVerdict.from_dict(kept.to_dict()) == kept


def test_guard_says_that_n_is_too_small():
    rng = np.random.default_rng(0)
    default = rng.random(60)
    verdict = judged(default + rng.normal(0.01, 0.2, 60), default)
    assert verdict.kept_blend
    assert not verdict.non_inferior
    assert "n is too small to tell" in verdict.sentence()
    assert "n = 60" in verdict.sentence()


def test_the_blend_is_the_average_of_its_rungs_by_their_shares():
    design, rows, targets = planted(600, [1.5, 0.3], seed=4)
    whole = weights_of(run(design, rows, targets, names=("first", "second"), sharpness=0.0).blend)
    best = weights_of(run(design, rows, targets, names=("first", "second"), sharpness=np.inf).blend)
    # with these two columns six rungs are the same fit; one is the first alone, one the sum of both at one scale
    first = run(design[:, :1], rows, targets, names=("first",), sharpness=np.inf).blend
    total = run(design.sum(axis=1, keepdims=True), rows, targets, names=("sum",), sharpness=np.inf).blend
    alone, together = np.array([weights_of(first)[0], 0.0]), np.repeat(weights_of(total), 2)
    np.testing.assert_allclose(whole, (alone + together + 6 * best) / 8, atol=0.05)


def test_linear_rungs_shrink_toward_the_plain_sum():
    # 60 cases tell little: with the truth in both columns alike the sum is the better guess than the first alone
    design, rows, targets = planted(60, [1.0, 1.0], seed=6)
    fit = run(design, rows, targets, names=("first", "second"), sharpness=0.0)
    root, linear = fit.blend.weights.reshape(2, -1)
    assert abs(linear[0] - linear[1]) < 0.5 * abs(root[0] - root[1])
    assert fit.verdict.rungs["sum"] > fit.verdict.rungs["prior"]


def test_rungs_hold_their_kinds_of_columns():
    names = ("a", "b", "a (linear)", "b (linear)", "a × user_support", "a (linear) × user_support", "sales_7d")
    assert [list(columns) for columns in columns_of_rungs(names, ["a", "b"])] == [
        *([], [0, 1], [0, 1, 6], [0, 1, 4, 6]),
        *([], [2, 3], [2, 3, 6], [2, 3, 5, 6]),
    ]
    assert len(RUNGS) == 8


def test_out_of_fold_scores_do_not_know_their_own_targets():
    # pure noise: in-sample the blend would look better than chance, out of fold it must not
    rng = np.random.default_rng(3)
    design, rows, _ = planted(120, np.zeros(15), seed=3)
    targets = Ragged.from_lengths(rng.integers(0, 20, 120), np.ones(120, dtype=np.int64))
    names = tuple(f"noise{i}" for i in range(15))
    fit = run(design, rows, targets, names=names)
    chance = ndcg_of(rng.normal(size=len(design)), rows, targets).mean()
    assert abs(ndcg_of(fit.out_of_fold, rows, targets).mean() - chance) < 0.1


def test_too_few_cases_leave_both_priors_or_the_start():
    design, rows, targets = planted(LEAST_CASES_FOR_BLEND - 1, [2.0, 0.0])
    fit = run(design, rows, targets)
    assert fit.verdict.difference is None
    alone, nothing, *together = fit.blend.weights  # nearly half the first alone, half the sum of both
    assert alone > 0.0 == nothing
    assert together[0] == together[1] > 0.0
    half = run(*planted(LEAST_CASES_FOR_BLEND // 2, [2.0, 0.0])).blend.weights
    share, of_half = (weights[2] / (weights[0] + weights[2]) for weights in (fit.blend.weights, half))
    assert of_half < 0.6 * share
    assert "too few" in fit.verdict.sentence()


def start_of(**weights):
    return Blend(tuple(weights), np.array(list(weights.values())), next(iter(weights)), 1.0)


def test_of_a_start_and_the_own_prior_the_one_that_ranks_better_is_taken_where_cases_are_few():
    design, rows, targets = planted(LEAST_CASES_FOR_BLEND - 1, [2.0, 0.0])
    own = run(design, rows, targets).blend.weights
    misled = run(design, rows, targets, start=start_of(noise=0.4, gone=9.0)).blend.weights
    np.testing.assert_array_equal(misled, own)
    # here it is the other column that tells the target, and the own default says nothing
    design, rows, targets = planted(LEAST_CASES_FOR_BLEND - 1, [0.0, 2.0])
    led = run(design, rows, targets, start=start_of(noise=0.4), default="good").blend.weights
    assert led[0] == 0.0 < led[1]


def test_a_start_that_ranks_as_the_own_prior_does_counts_half():
    design, rows, targets = planted(LEAST_CASES_FOR_BLEND - 1, [2.0, 0.0])
    own = run(design, rows, targets).blend.weights
    same_order = dict(zip(("good", "noise", "good (linear)", "noise (linear)"), 3 * own, strict=True))
    met = run(design, rows, targets, start=start_of(**same_order)).blend.weights
    assert met[1] == 0.0 < own[0] < met[0] < 3 * own[0]


def test_no_cases_at_all():
    fit = run(np.empty((0, 2), np.float32), Ragged.empty(0), Ragged.empty(0))
    assert fit.blend.default == "good"
    assert fit.blend.weights[0] > 0
