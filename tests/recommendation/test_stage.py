"""One stage on made lists: the upstream score's scale, supports, features that can order, calibration, JSON."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.recommendation import stage as stage_module
from llm_rerank.recommendation.calibration import LogisticCalibrator, fit_calibrator
from llm_rerank.recommendation.candidates import is_member
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.stage import Stage, fit_stage, supports, usable_features
from llm_rerank.recommendation.thresholds import Cut
from llm_rerank.types import Ragged
from tests.planted import cases_of

N_CANDIDATES = 12
USER, ITEM = PAIR_FEATURES.index("user_support"), PAIR_FEATURES.index("item_support")


def made_fold(n_cases, *, opinion=0.0, seed=0, upstream=False):
    """Lists of 12 items, one target each, drawn from softmax(first component + opinion × sentiment [+ upstream])."""
    rng = np.random.default_rng(seed)
    n = n_cases * N_CANDIDATES
    scores = rng.normal(size=(n, 2)).astype(np.float32)
    values = rng.normal(size=(n, len(PAIR_FEATURES))).astype(np.float32)
    values[:, USER] = np.repeat(rng.uniform(0, 3, n_cases), N_CANDIDATES)
    values[:, ITEM] = rng.uniform(0, 5, n)
    given = rng.normal(size=n).astype(np.float32)
    logits = scores[:, 0] + opinion * values[:, PAIR_FEATURES.index("sentiment")] + (given if upstream else 0)
    chosen = (logits + rng.gumbel(size=n)).reshape(n_cases, N_CANDIDATES).argmax(axis=1)
    cases = cases_of([[]] * n_cases, [np.arange(N_CANDIDATES)] * n_cases, chosen[:, None], [[]] * n_cases)
    return Fold(ScoredCases(cases, scores, scores), Ragged.empty(n_cases), values, given if upstream else None)


def fitted(fold, features=("sentiment", "item_support", "user_support")):
    return fit_stage(fold, ["one", "two"], features=features, n_items=N_CANDIDATES, start=None, seed=0).stage


@pytest.fixture(scope="module")
def with_upstream():
    fold = made_fold(150, upstream=True)
    return fold, fitted(fold)


def test_the_unit_of_the_upstream_score_does_not_matter(with_upstream):
    fold, stage = with_upstream
    other = replace(fold, upstream=(100 + 5 * fold.upstream).astype(np.float32))
    assert stage.blend.weights[stage.blend.names.index("upstream")] > 0.3
    np.testing.assert_allclose(fitted(other).score(other), stage.score(fold), atol=1e-2)


def test_an_unknown_upstream_score_counts_as_the_mean_one(with_upstream):
    fold, stage = with_upstream
    mean = np.full_like(fold.upstream, fold.upstream.mean())
    at_mean = stage.score(replace(fold, upstream=mean))
    unknown = stage.score(replace(fold, upstream=np.full_like(fold.upstream, np.nan)))
    np.testing.assert_allclose(unknown, at_mean, atol=1e-3)
    np.testing.assert_array_equal(stage.score(replace(fold, upstream=None)), unknown)
    gaps = np.where(np.arange(len(fold.upstream)) % 5 == 0, np.nan, fold.upstream).astype(np.float32)
    thinner = fitted(replace(fold, upstream=gaps))
    assert np.isfinite(thinner.score(replace(fold, upstream=gaps))).all()
    assert thinner.blend.weights[thinner.blend.names.index("upstream")] > 0.3


def test_the_upstream_score_is_the_default_even_where_it_knows_nothing():
    fold = made_fold(80)
    noise = np.random.default_rng(5).normal(size=len(fold.pair_values)).astype(np.float32)
    assert fitted(replace(fold, upstream=noise)).verdict.default == "upstream"
    assert fitted(fold).verdict.default == "one"


def test_a_probability_reads_the_support_of_user_and_item_each_in_its_place(with_upstream):
    fold, stage = with_upstream
    calibrator = LogisticCalibrator(-1.0, np.array([0.5, 2.0, -3.0]), 50)
    values = fold.pair_values[:2].copy()
    values[:, USER], values[:, ITEM] = [0.5, np.nan], [0.25, 1.0]
    # −1 + .5 × 2 + 2 × .5 − 3 × .25 = .25, and −1 + .5 × 4 + 0 − 3 × 1 = −2
    probabilities = replace(stage, calibrator=calibrator).probability(np.array([2.0, 4.0]), values)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp([-0.25, 2.0])), rtol=1e-6)
    assert np.isnan(replace(stage, calibrator=None).probability(np.array([2.0, 4.0]), values)).all()


def test_an_upstream_score_that_is_always_the_same_says_nothing():
    fold = made_fold(80, upstream=True)
    fold = replace(fold, upstream=np.full_like(fold.upstream, 3.0))
    stage = fitted(fold)
    assert np.isfinite(stage.score(fold)).all()
    assert stage.upstream_scale[0] == pytest.approx(3.0)


def test_supports_are_those_of_user_and_item_and_unknown_is_none():
    values = np.full((3, len(PAIR_FEATURES)), 9.0, dtype=np.float32)
    values[:, USER], values[:, ITEM] = [1, 2, np.nan], [np.nan, 3, 4]
    user, item = supports(values)
    assert user.tolist() == [1, 2, 0]
    assert item.tolist() == [0, 3, 4]


def test_a_feature_is_used_where_it_differs_within_some_list():
    rows = Ragged.from_lengths(np.arange(5), np.array([2, 3, 0]))
    values = np.full((5, len(PAIR_FEATURES)), np.nan, dtype=np.float32)
    by_name = {
        "sales_7d": [1, 1, 2, 2, 2],  # differs between lists only
        "recency": [1, 1, 2, 2, 3],  # differs in the second list
        "sentiment": [np.nan, 0, 1, 1, 1],  # known for one of the first list
        "mean_rating": [5, 5, 5, 5, 5],
        "price_gap": [1, 2, 3, 4, 5],
    }
    for name, column in by_name.items():
        values[:, PAIR_FEATURES.index(name)] = column
    allowed = [name for name in PAIR_FEATURES if name != "price_gap"]
    assert usable_features(values, rows, allowed) == ("recency", "sentiment")
    assert usable_features(values[:0], Ragged.empty(3), allowed) == ()


def test_columns_of_features_are_standardised_over_the_fold():
    fold = made_fold(60)
    fold.pair_values[:, PAIR_FEATURES.index("sentiment")] += np.arange(len(fold.pair_values)) / 100
    stage = fitted(fold, features=("sentiment", "mean_rating"))
    design = stage.design(fold.scored.scores, fold.pair_values, None)
    columns = [stage.blend.names.index(name) for name in ("sentiment", "mean_rating")]
    np.testing.assert_allclose(design[:, columns].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(design[:, columns].std(axis=0), 1, atol=1e-5)
    raw = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in ("sentiment", "mean_rating")]]
    for column in range(2):
        assert np.corrcoef(design[:, columns[column]], raw[:, column])[0, 1] == pytest.approx(1, abs=1e-4)


def test_item_support_is_left_out_where_it_is_not_allowed():
    fold = made_fold(60)
    assert not any("item_support" in name for name in fitted(fold, features=("sentiment",)).blend.names)
    assert "one × item_support" in fitted(fold, features=("item_support",)).blend.names


def test_probabilities_come_from_scores_of_cases_left_out_of_the_fit(monkeypatch):
    straight = partial(fit_calibrator, bends=())  # one slope tells how sure it is
    monkeypatch.setattr(stage_module, "fit_calibrator", straight)
    # one telling feature among eleven of noise, on 60 lists: a blend tells the lists that it was fitted on too well
    fold = made_fold(60, opinion=1.0)
    stage = fitted(fold, features=PAIR_FEATURES)
    assert sum(share for rung, share in stage.verdict.shares.items() if "features" in rung) > 0.5
    positive = is_member(fold.candidates, fold.targets, N_CANDIDATES)
    flattered = straight(stage.score(fold), *supports(fold.pair_values), positive)
    assert stage.calibrator.coefficients[0] < 0.9 * flattered.coefficients[0]


def test_json_keeps_a_stage_with_its_cut(with_upstream):
    fold, stage = with_upstream
    stage = replace(stage, cut=Cut("recall", 0.9, 0.05, 0.3, 0.9, 2.5, 150, 120))
    again = Stage.from_dict(json.loads(json.dumps(stage.to_dict())))
    assert again.to_dict() == stage.to_dict()
    assert again.cut == stage.cut
    np.testing.assert_allclose(again.score(fold), stage.score(fold), atol=1e-12)
    np.testing.assert_array_equal(
        again.probability(again.score(fold), fold.pair_values), stage.probability(stage.score(fold), fold.pair_values)
    )
