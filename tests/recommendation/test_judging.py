"""What a stage is worth on fold G, by hand: ranking, recall, calibration, and the cut with its warnings."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.missing import MissingValues, Standardizer
from llm_rerank.recommendation.blend_columns import LINEAR
from llm_rerank.recommendation.calibration import LogisticCalibrator
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.fusion import Blend
from llm_rerank.recommendation.guard import GuardVerdict
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.judging import report_and_cut
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.stage import Stage
from llm_rerank.reliability import calibration_line, expected_calibration_error
from llm_rerank.types import Ragged
from tests.planted import cases_of

SECOND = 1 / np.log2(3)  # NDCG of one target in the second place
THIRD = 1 / 2


def stage_of(*, upstream=False):
    """The first component ranks alone; the probability is that of its signed root minus one."""
    components = ("one", "two", "upstream") if upstream else ("one", "two")
    both = (*components, *(f"{name}{LINEAR}" for name in components))
    names = (*both, *(f"{name} × user_support" for name in both))
    weights = np.zeros(len(names))
    weights[0] = 1.0
    nothing = np.empty((1, 0), dtype=np.float32)
    return Stage(
        component_names=components,
        feature_names=(),
        uses_item_support=False,
        missing=MissingValues().fit(nothing, ()),
        standardizer=Standardizer().fit(nothing),
        upstream_scale=(0.0, 1.0) if upstream else None,
        linear=Standardizer().fit(np.zeros((1, len(components)), dtype=np.float32)),
        blend=Blend(names, weights, "one", None),
        verdict=GuardVerdict("one", 0.1, 0.1, None, 0.0, 3, False, False, "prior", {}),
        calibrator=LogisticCalibrator(-1.0, np.array([1.0, 0.0, 0.0]), 50),
        cut=None,
    )


def fold_of(candidates, targets, one, two, upstream=None):
    scores = np.column_stack([one, two]).astype(np.float32)
    cases = cases_of([[]] * len(candidates), candidates, targets, [[]] * len(candidates))
    values = np.zeros((len(scores), len(PAIR_FEATURES)), dtype=np.float32)
    given = None if upstream is None else np.asarray(upstream, dtype=np.float32)
    return Fold(ScoredCases(cases, scores, scores), Ragged.empty(len(cases)), values, given)


@pytest.fixture
def fold():
    """Three lists of three; targets: the best two of "one"; its third and one not on the list; none."""
    return fold_of(
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[0, 1], [5, 9], []],
        [4.0, 1.0, 0.0, 4.0, 1.0, 0.0, 4.0, 1.0, 0.0],
        [1.0, 4.0, 0.0, 0.0, 1.0, 4.0, 4.0, 1.0, 0.0],
    )


def judged(stage, fold, rule=None):
    log = FitLog(verbose=False)
    stage, report = report_and_cut(stage, fold, RerankerConfig(encoder=None, sequence="off", threshold=rule), 20, log)
    return stage, report, log.lines


def test_ranking_and_recall_by_hand(fold):
    _, report, lines = judged(stage_of(), fold)
    best = 1 + SECOND  # DCG of two targets
    assert report["ranking"]["fused"] == pytest.approx((1 + THIRD / best) / 2)  # the list without a target is left out
    assert report["ranking"]["one"] == report["ranking"]["fused"]
    assert report["ranking"]["two"] == pytest.approx((1 + 1 / best) / 2)
    assert report["n_cases"] == 3
    assert report["n_retrieved"] == 2
    assert report["candidate_recall"] == pytest.approx((1 + 1 / 2) / 2)
    assert "fold G (3 cases, 3 candidates each, candidate recall 0.750)" in lines[0]
    assert report["cut"] is None


def test_the_upstream_score_is_judged_beside_the_components():
    fold = fold_of([[0, 1, 2]], [[2]], [4, 1, 0], [0, 1, 0.5], upstream=[1, 2, 3])
    _, report, _ = judged(stage_of(upstream=True), fold)
    assert report["ranking"] == pytest.approx({"fused": THIRD, "one": THIRD, "two": SECOND, "upstream": 1.0})


def test_calibration_is_that_of_the_first_ten_and_of_all():
    rng = np.random.default_rng(0)
    n, length = 40, 14
    one = rng.permuted(np.tile(np.linspace(0.1, 9, length), (n, 1)), axis=1)
    probability = 1 / (1 + np.exp(1 - np.sqrt(one)))
    hits = rng.random((n, length)) < probability**2  # the stage promises too much
    targets = [np.flatnonzero(row) if row.any() else [0] for row in hits]
    fold = fold_of([np.arange(length)] * n, targets, one.ravel(), one.ravel())
    positive = np.zeros((n, length), dtype=bool)
    for row, codes in enumerate(targets):
        positive[row, codes] = True
    _, report, lines = judged(stage_of(), fold)
    top = np.argsort(np.argsort(-one, axis=1), axis=1) < 10
    p = probability.astype(np.float32)
    values = report["calibration"]
    assert values["ece_top_10"] == pytest.approx(expected_calibration_error(p[top], positive[top]), abs=1e-6)
    assert values["ece_top_10"] > 0.1
    line = calibration_line(p.ravel(), positive.ravel())
    assert (values["slope"], values["intercept"]) == pytest.approx((line.slope, line.intercept), abs=1e-3)
    assert values["slope"] > 1.3
    rows = np.repeat(np.arange(n), length)
    line = calibration_line(p.ravel(), positive.ravel(), rows)
    assert values["slope_ci95"] == pytest.approx(line.slope_interval, abs=1e-3)
    assert f"slope {line.slope:.2f} [{line.slope_interval[0]:.2f}, " in lines[1]
    assert f"intercept {line.intercept:+.2f}" in lines[1]
    assert values["n_candidates"] == n * length
    assert sum(values["reliability"]["counts"]) == n * length
    assert values["mean_probability_top_10"] == pytest.approx(p[top].mean())


def test_calibration_is_told_apart_by_how_much_is_known_of_users_and_items():
    n = 40
    rng = np.random.default_rng(1)
    fold = fold_of([np.arange(12)] * n, [[int(rng.integers(12))] for _ in range(n)], *[rng.random(12 * n)] * 2)
    fold.pair_values[:, PAIR_FEATURES.index("user_support")] = np.log1p(np.repeat(rng.integers(0, 5, n), 12))
    fold.pair_values[:, PAIR_FEATURES.index("item_support")] = np.log1p(np.tile([0, 3, 4, 5, 19, 20] * 2, n))
    strata = judged(stage_of(), fold)[1]["calibration"]["strata"]
    assert set(strata) == {"user 0", "user 1-2", "user 3-5", "item 0", "item 1-4", "item 5-19", "item 20+"}
    assert [strata[f"item {name}"]["n"] for name in ("0", "1-4", "5-19", "20+")] == [80, 160, 160, 80]
    assert sum(strata[f"user {name}"]["n"] for name in ("0", "1-2", "3-5")) == 12 * n
    assert sum(strata[f"item {name}"]["n_targets"] for name in ("0", "1-4", "5-19", "20+")) == n


def test_the_cut_is_chosen_here_and_few_lists_are_said(fold):
    stage, report, lines = judged(stage_of(), fold, ThresholdConfig("recall", 1.0))
    # all three retrieved targets are kept from the probability of score 0 on: 1 / (1 + e)
    assert stage.cut.least_probability == pytest.approx(1 / (1 + np.e))
    assert report["cut"] == stage.cut.to_dict()
    assert stage.cut.n_targets == 3
    assert any("chosen on 2 retrieved cases, fewer than 300" in line for line in lines)


def test_many_lists_need_no_warning():
    fold = fold_of([[0, 1]] * 300, [[0]] * 300, [4.0, 1.0] * 300, [0.0] * 600)
    stage, _, lines = judged(stage_of(), fold, ThresholdConfig("recall", 0.9))
    assert stage.cut is not None
    assert not any("warning" in line for line in lines)


def test_without_probabilities_or_targets_nothing_is_cut_and_it_is_said(fold):
    rule = ThresholdConfig("recall", 0.9)
    stage, report, lines = judged(replace(stage_of(), calibrator=None), fold, rule)
    assert stage.cut is None
    assert report["calibration"] == {}
    assert any(line.startswith("warning: cut: rule 'recall' needs probabilities") for line in lines)
    missed = fold_of([[0, 1]], [[5]], [1, 0], [1, 0])
    stage, report, lines = judged(stage_of(), missed, rule)
    assert (stage.cut, report["calibration"]) == (None, {})
    assert any("needs retrieved targets" in line and line.endswith("nothing is cut") for line in lines)
    # a fixed probability needs none
    stage, _, _ = judged(stage_of(), missed, ThresholdConfig("probability", 0.3))
    assert stage.cut.least_probability == 0.3


def test_an_empty_fold_is_said(fold):
    stage, report, lines = judged(stage_of(), fold.take(np.empty(0, dtype=np.int64)))
    assert report == {"n_cases": 0, "ranking": {}, "calibration": {}}
    assert "fold G has no cases" in lines[0]
    assert stage.cut is None
