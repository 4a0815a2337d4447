"""Lists of an upstream recommender: its score joins the blend, with a stage of its own."""

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.upstream import shown_lists
from llm_rerank.types import DataReport

CONFIG = RerankerConfig(encoder=None, candidates_per_source=30, refit=False)


def shown(shop, seed=0):
    """Lists of 20 items, shown late; the upstream score knows a little of what is taken from them afterwards."""
    events, items = shop
    rng = np.random.default_rng(seed)
    late = events[events["event"] == "purchase"].sort_values("timestamp").groupby("user_id").tail(1)
    rows = []
    for row in late.itertuples():
        codes = rng.choice(items["item_id"][:-2], 20, replace=False)
        codes[rng.integers(20)] = row.item_id
        for item in dict.fromkeys(codes):
            rows.append((row.user_id, item, row.timestamp - 30, (item == row.item_id) + rng.normal(0, 0.7)))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "upstream_score"])


@pytest.fixture(scope="module")
def fitted_with_lists(shop):
    return Reranker(CONFIG, verbose=False).fit(*shop, impressions=shown(shop))


def test_targets_are_what_was_taken_from_the_list_after_it_was_shown(shop):
    impressions = shown(shop)
    events, items, _, lists = read_shop(CONFIG, *shop, None, impressions, None, "auto", DataReport())
    holdout = plan_holdout(events, 0, FitLog(verbose=False))
    cases, seen, scores = shown_lists(lists, events, holdout)
    users = np.unique(lists["user_id"][lists["time"] >= holdout.as_of])
    assert len(cases) == len(users)
    assert len(scores) == len(cases.candidates.values)
    bought = shop[0][shop[0]["event"] == "purchase"]
    for place, user in enumerate(sorted(users, key=list(events.user_ids).index)):
        rows = impressions[impressions["user_id"] == user]
        later = bought[(bought["user_id"] == user) & (bought["timestamp"] >= rows["timestamp"].iloc[0])]
        wanted = set(later["item_id"]) & set(rows["item_id"])
        had = set(items.ids[seen[place]])
        assert set(items.ids[cases.targets[place]]) == wanted - had
        assert (cases.history_times[cases.history.offsets[place] : cases.history.offsets[place + 1]]
                < holdout.as_of).all()  # fmt: skip


def test_the_upstream_score_is_blended_and_is_the_default(fitted_with_lists, shop):
    stage = fitted_with_lists._fit_result().upstream_stage
    assert stage.verdict.default == "upstream"
    assert stage.blend.weights[stage.blend.names.index("upstream")] > 0
    candidates = shown(shop)[["user_id", "item_id", "upstream_score"]].iloc[:200]
    result = fitted_with_lists.rerank(candidates)
    parts = result.filter(like="score_").sum(axis=1)
    np.testing.assert_allclose(parts, result["score"], atol=1e-9)
    assert result["score_upstream"].abs().sum() > 0
    # the same list with another upstream opinion is another list
    turned = fitted_with_lists.rerank(candidates.assign(upstream_score=-candidates["upstream_score"]))
    assert list(turned["item_id"]) != list(result["item_id"])


def test_candidates_without_an_upstream_score_are_judged_as_retrieved(fitted_with_lists, shop):
    candidates = shown(shop)[["user_id", "item_id"]].iloc[:50]
    assert "score_upstream" not in fitted_with_lists.rerank(candidates)


def test_the_stage_survives_the_disk(fitted_with_lists, shop, tmp_path):
    fitted_with_lists.save(tmp_path / "shop")
    candidates = shown(shop)[["user_id", "item_id", "upstream_score"]].iloc[:200]
    here, there = fitted_with_lists.rerank(candidates), Reranker.load(tmp_path / "shop").rerank(candidates)
    np.testing.assert_allclose(here["score"], there["score"], atol=1e-6)


def test_without_real_time_impressions_are_not_used_and_it_is_said(shop):
    events, items = shop
    positions = events.assign(timestamp=events.groupby("user_id").cumcount())
    lists = shown(shop).assign(timestamp=10**6)
    reranker = Reranker(CONFIG, verbose=False).fit(positions, items, impressions=lists)
    assert reranker._fit_result().upstream_stage is None
    assert "impressions need the time protocol" in str(reranker.report())
