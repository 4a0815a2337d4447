"""A shop's evaluation asks for what its fit learned, as of when its users took it, and of no more users than said."""

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import Dataset
from llm_rerank.evaluation.comparison import evaluate_ranking
from llm_rerank.evaluation.protocols import LastOut, hold_out, ranking_from_frame
from llm_rerank.evaluation.systems import compare_systems, drawn, evaluate_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError

WORDLESS = {"encoder": None, "sequence": "off", "semantic": "off", "cross_encoder": "off"}
DAY = 86_400


def shop_of_views() -> tuple[pd.DataFrame, pd.DataFrame]:
    """150 users, half a year of views and rated purchases, drawn without any order."""
    rng = np.random.default_rng(0)
    n = 4000
    kinds = rng.choice(["view", "purchase"], n, p=[0.6, 0.4])
    events = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user in rng.integers(0, 150, n)],
            "item_id": [f"i{item}" for item in rng.integers(0, 80, n)],
            "timestamp": 1_700_000_000 + np.sort(rng.integers(0, 200 * DAY, n)),
            "event": kinds,
            "rating": np.where(kinds == "purchase", rng.integers(1, 6, n), np.nan),
        }
    )
    return events, pd.DataFrame({"item_id": [f"i{n}" for n in range(80)], "title": [f"thing {n}" for n in range(80)]})


def fashions() -> Dataset:
    """300 users, each there for 60 of 720 days; every month eight other items are in fashion."""
    rng = np.random.default_rng(1)
    rows = []
    for user, start in enumerate(rng.integers(0, 660, 300)):
        for day in start + 60 * rng.random(12):
            in_fashion = rng.random() < 0.8
            item = (int(day / 30) * 5 + rng.integers(0, 8)) % 120 if in_fashion else rng.integers(0, 120)
            rows.append((f"u{user}", f"i{item}", 1_600_000_000 + int(day * DAY)))
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(120)], "title": [f"thing {n}" for n in range(120)]})
    return Dataset("fashions", events, items, None, [])


@pytest.mark.parametrize("settings", [{"target_events": ("view",)}, {"min_rating": 4.0}])
def test_the_test_asks_for_what_the_fit_learned(settings):
    events, items = shop_of_views()
    shown = evaluate_shop(events, items, config=RerankerConfig(**WORDLESS, **settings), verbose=False)
    trial = shown.trial
    wanted = {
        (user, trial.items.ids[code])
        for row, user in enumerate(trial.user_ids)
        for code in trial.cases.targets[row].tolist()
    }
    later = events[events["timestamp"] >= trial.at]
    good = later["event"].isin(settings.get("target_events", ("purchase",)))
    good &= ~(later["rating"] < settings.get("min_rating", 0.0))
    taken = set(later[good][["user_id", "item_id"]].itertuples(index=False, name=None))
    assert wanted and wanted <= taken


def test_lists_of_users_who_left_at_different_times_are_asked_for_as_of_then():
    trial = hold_out(fashions(), LastOut(), "test")
    assert trial.at is None and trial.moments == dict(zip(trial.user_ids, trial.cases.times.tolist(), strict=True))
    reranker = Reranker(RerankerConfig(**WORDLESS), verbose=False).fit(trial.interactions, trial.item_frame)
    table = compare_systems(reranker, trial)
    alone = [reranker.recommend([user], k=100, at=moment) for user, moment in trial.moments.items()]
    one_by_one = evaluate_ranking(ranking_from_frame(pd.concat(alone), trial), trial)
    np.testing.assert_array_equal(table.results["fused"].per_case["ndcg@10"], one_by_one.per_case["ndcg@10"])
    # sales of the last weeks say what is in fashion: as of the shop's last day they say it of another month
    today = evaluate_ranking(ranking_from_frame(reranker.recommend(list(trial.user_ids), k=100), trial), trial)
    assert table.results["fused"].intervals["ndcg@10"].mean > 1.2 * today.intervals["ndcg@10"].mean


def test_no_more_users_are_tested_than_asked_for():
    trial = hold_out(fashions(), LastOut(), "test")
    few = drawn(trial, 50, seed=3)
    assert len(few.cases) == len(few.user_ids) == len(few.seen) == 50
    assert f"{len(trial.cases) - 50:,} users beyond the 50 drawn to be tested" in few.describe()
    assert set(few.user_ids) < set(trial.user_ids)
    assert (
        few.user_ids.tolist()
        == drawn(trial, 50, seed=3).user_ids.tolist()
        != drawn(trial, 50, seed=4).user_ids.tolist()
    )
    assert drawn(trial, len(trial.cases), seed=3) is trial
    for most_users in (0, 2.5, True):
        with pytest.raises(DataError, match="it must be a whole number of at least 1"):
            drawn(trial, most_users, seed=0)
