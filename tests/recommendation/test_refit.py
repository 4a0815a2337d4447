"""The refit on all rows: kept where it ranks as the judged components did, refused where it does not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.cases import build_cases
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.candidates import is_member
from llm_rerank.recommendation.components import reference_items
from llm_rerank.recommendation.held_out import fit_and_score_holdout
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.judging import report_and_cut
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.refit import refit_components
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.recommendation.stage import fit_stage
from llm_rerank.types import DataReport

CONFIG = RerankerConfig(
    encoder=None, sequence="off", candidates_per_source=30, threshold=ThresholdConfig("recall", 0.9)
)


@pytest.fixture(scope="module")
def judged(shop):
    events, items, _, _ = read_shop(CONFIG, *shop, None, None, None, "auto", DataReport())
    data = FitData(events, items, None, None, np.full(len(events), np.nan, np.float32))
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in default_specs(len(items), encoder=None)]
    tools = FitTools(CONFIG, None, specs, PAIR_FEATURES, Renderer())
    holdout = plan_holdout(events, 0, FitLog(verbose=False))
    components, past_items, fold_f, fold_g = fit_and_score_holdout(data, tools, holdout, FitLog(verbose=False))
    names = [component.name for component in components if component.blends]
    # no pair features: brand and sales alone could hold the order where the components fail
    stage = fit_stage(fold_f, names, features=(), n_items=len(items), start=None, seed=0).stage
    stage, _ = report_and_cut(stage, fold_g, CONFIG, len(items), FitLog(verbose=False))
    return specs, components, past_items, fold_g, stage, holdout


def refit(judged, events, **changes):
    specs, components, items, fold_g, stage, _ = judged
    fold_g, stage = changes.get("fold", fold_g), changes.get("stage", stage)
    log = FitLog(verbose=False)
    kept = refit_components(components, specs, events, items, fold_g, stage, reference_items(len(items), 0), 0, log)
    return kept, log.lines[-1]


def test_the_same_rows_give_the_same_components(judged):
    kept, line = refit(judged, judged[5].past)
    assert "before and after 1.000" in line
    assert all(new is not old for new, old in zip(kept, judged[1], strict=True))
    cases = judged[3].scored.cases.take(np.arange(5))
    for new, old in zip(kept, judged[1], strict=True):  # drawn from the same seed, too
        np.testing.assert_allclose(new.scorer.score_catalogue(cases), old.scorer.score_catalogue(cases), rtol=1e-5)


def test_components_that_rank_otherwise_are_refused_with_a_warning(judged):
    past = judged[5].past
    shuffled = replace(past, items=np.random.default_rng(0).permutation(past.items))
    kept, line = refit(judged, shuffled)
    assert line.startswith("warning: refit")
    assert all(new is old for new, old in zip(kept, judged[1], strict=True))


def test_the_settings_that_were_chosen_are_fitted_again(judged):
    specs, components, items, fold_g, stage, holdout = judged
    chosen = [
        replace(component, settings={"candidate_exponent": 0.7}) if component.name == "item_knn" else component
        for component in components
    ]
    kept, _ = refit((specs, chosen, items, fold_g, stage, holdout), holdout.past)
    exponents = {component.name: getattr(component.scorer, "candidate_exponent", None) for component in kept}
    assert exponents["item_knn"] == 0.7


def with_scores(fold, change):
    """The fold as if the judged components had said something else of its candidates."""
    return replace(fold, scored=replace(fold.scored, scores=change(fold.scored.scores).astype(np.float32)))


def is_refused(judged, **changes):
    kept, line = refit(judged, judged[5].past, **changes)
    refused = line.startswith("warning: refit")
    assert refused == all(new is old for new, old in zip(kept, judged[1], strict=True))
    assert refused != all(new is not old for new, old in zip(kept, judged[1], strict=True))
    return refused, line


def test_an_order_that_is_half_the_same_or_turned_over_is_refused(judged):
    fold, stage = judged[3], replace(judged[4], cut=None)
    noise = np.random.default_rng(0).normal(size=fold.scored.scores.shape)
    refused, line = is_refused(judged, stage=stage, fold=with_scores(fold, lambda scores: scores + 1.5 * noise))
    assert refused
    assert 0.2 < float(line.split("before and after ")[1].split(":")[0]) < 0.75
    refused, line = is_refused(judged, stage=stage, fold=with_scores(fold, lambda scores: -scores))
    assert refused
    assert "before and after -1.000" in line


def test_where_the_judged_components_said_nothing_any_order_is_another(judged):
    fold, stage = judged[3], replace(judged[4], cut=None)
    assert is_refused(judged, stage=stage, fold=with_scores(fold, np.zeros_like))[0]


@pytest.mark.parametrize(("factor", "refused"), [(1.0, False), (1.2, True), (0.8, True)])
def test_the_same_order_with_another_kept_rate_is_refused(judged, factor, refused):
    # all scores times a factor: the order stays, and at a cut that few reach the kept rate does not
    fold, stage = with_scores(judged[3], lambda scores: factor * scores), judged[4]
    probabilities = stage.probability(stage.score(judged[3]), judged[3].pair_values)
    cut = replace(stage.cut, least_probability=float(np.quantile(probabilities, 0.95)))
    said, line = is_refused(judged, stage=replace(stage, cut=cut), fold=fold)
    assert said == refused
    assert "before and after 1.000" in line
    before, after = (float(rate.strip(" :,")) for rate in line.split("kept rate ")[1].split(":")[0].split("→"))
    assert 0 < after < 0.075
    assert (before > after) == (factor > 1)
    assert abs(before - after) < 0.9 * before  # it is no matter of all or nothing


@pytest.mark.parametrize(("n_crossing", "refused"), [(1, False), (6, True)])
def test_one_candidate_more_where_few_are_kept_is_no_other_kept_rate(judged, n_crossing, refused):
    fold, stage = judged[3], judged[4]
    probabilities = stage.probability(stage.score(fold), fold.pair_values)
    others = np.flatnonzero(~is_member(fold.candidates, fold.targets, len(judged[2])))
    best = others[np.argsort(-probabilities[others], kind="stable")[:10]]
    cut = replace(stage.cut, least_probability=float(probabilities[best[8:]].mean()))  # nine are kept
    crossing = np.isin(np.arange(len(probabilities)), best[:n_crossing])[:, None]
    fold = with_scores(fold, lambda scores: np.where(crossing, np.nanmin(scores, axis=0), scores))
    said, line = is_refused(judged, stage=replace(stage, cut=cut), fold=fold)
    assert said == refused
    n = len(others)
    assert f"kept rate {(9 - n_crossing) / n:.4f} → {9 / n:.4f}" in line


def test_pairs_that_are_targets_are_not_asked(judged):
    # the judged components turn the targets over and nothing else
    fold, stage = judged[3], replace(judged[4], cut=None)
    hit = is_member(fold.candidates, fold.targets, len(judged[2]))[:, None]
    assert not is_refused(judged, stage=stage, fold=with_scores(fold, lambda s: np.where(hit, -s, s)))[0]
    only = with_scores(fold, lambda s: np.where(hit, s, np.random.default_rng(0).normal(size=s.shape)))
    assert is_refused(judged, stage=stage, fold=only)[0]


def test_without_candidates_there_is_nothing_to_compare(judged):
    fold = judged[3].take(np.empty(0, dtype=np.int64))
    specs, components, items, _, stage, holdout = judged
    log = FitLog(verbose=False)
    reference = reference_items(len(items), 0)
    kept = refit_components(components, specs, holdout.past, items, fold, stage, reference, 0, log)
    assert all(new is not old for new, old in zip(kept, components, strict=True))


def test_what_a_refused_refit_leaves_forgets_the_words_of_a_user(shop, monkeypatch):
    # a review from before the hold-out, which eight later ones push out of the item's text of now
    monkeypatch.setattr("llm_rerank.recommendation.refit.LEAST_SPEARMAN", 1.01)
    events, items = shop
    early, late = (int(np.quantile(events["timestamp"], share)) for share in (0.3, 0.95))
    rows = [("xavier", items["item_id"][9], early - 50, ""), ("xavier", items["item_id"][0], early, "zanzibar")]
    rows += [(f"u{place}", items["item_id"][0], late + place, "very nice indeed") for place in range(8)]
    added = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "review"]).assign(event="purchase")
    specs = [spec for spec in default_specs(len(items), encoder=None) if spec.name in ("item_knn", "lexical")]
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in specs]
    model = Reranker(CONFIG, components=specs, verbose=False).fit(pd.concat([events, added]), items)
    assert not model.report().values["refitted"]

    def likeness():
        scorer = next(one.scorer for one in model.components if one.name == "lexical")
        case = build_cases(model.saved.events, np.array([-1]), np.array([0]))
        return scorer.score_catalogue(replace(case, queries=["zanzibar"]))[0, 0]

    assert likeness() > 0.1
    assert "lexical (texts)" in model.forget(["xavier"]).rewritten
    assert likeness() == 0.0
