"""A shop's evaluation asks for what its fit learned, as of when its users took it, and of no more users than said."""

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.datasets import Dataset
from llm_rerank.evaluation import report_probability, tested_lists
from llm_rerank.evaluation.comparison import evaluate_ranking
from llm_rerank.evaluation.protocols import LastOut, TimeCut, hold_out, ranking_from_frame
from llm_rerank.evaluation.report_sections import strata_section
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


def baskets_by_number() -> tuple[pd.DataFrame, pd.DataFrame]:
    """200 users with four orders of three of 60 items each; the time of a row is the number of its order."""
    rng = np.random.default_rng(2)
    rows = [
        (f"u{user}", f"i{item}", order)
        for user in range(200)
        for order, basket in enumerate(rng.permutation(60)[:12].reshape(4, 3))
        for item in basket
    ]
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(60)], "title": [f"thing {n}" for n in range(60)]})
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]), items


def test_of_orders_the_last_is_asked_for_whole_whatever_the_order_of_rows():
    events, items = baskets_by_number()
    last = events[events["timestamp"] == 3]
    for seed in (0, 1):
        shown = evaluate_shop(
            events.sample(frac=1, random_state=seed), items, config=RerankerConfig(**WORDLESS), verbose=False
        )
        trial = shown.trial
        targets = trial.cases.targets
        found = set(zip(trial.user_ids[targets.row_of_value], trial.items.ids[targets.values], strict=True))
        assert found == set(last[["user_id", "item_id"]].itertuples(index=False, name=None))
        assert trial.at is None and len(trial.past) == 1800
        assert "the test counts all new items of one visit." in report_probability.tested_in_words(
            shown.table.probabilities
        )


def test_users_who_only_looked_are_tested_as_the_fit_holds_them_out():
    events, items = shop_of_views()
    lookers = [f"u{user}" for user in range(40)]
    events = events.assign(event=events["event"].mask(events["user_id"].isin(lookers), "view"))
    late = events["timestamp"] > events["timestamp"].quantile(0.92)
    events.loc[late & events["user_id"].isin(lookers), "event"] = "purchase"
    shown = evaluate_shop(events, items, config=RerankerConfig(**WORDLESS), verbose=False)
    tested = [user for user, n in zip(shown.trial.user_ids, shown.trial.seen.lengths, strict=True) if n == 0]
    assert set(tested) <= set(lookers) and len(tested) > 30
    nothing = shown.table.results["fused"].strata["user 0"]
    assert nothing is not None and nothing.n == len(tested)
    assert "fewer than" not in shown.table.trial
    said = strata_section(shown.table)
    assert "Users with 0 items had looked at some until then, and taken none." in said.paragraphs


@pytest.mark.parametrize("per_source", [100, 40])
def test_cut_and_probabilities_are_of_whole_lists_and_ranking_of_their_first_hundred(per_source):
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", f"i{item}", 1_600_000_000 + int(day * DAY))
        for user in range(500)
        for item, day in zip(rng.integers(0, 320, 8), rng.random(8) * 100, strict=True)
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(320)], "title": [f"thing {n}" for n in range(320)]})
    trial = hold_out(Dataset("shop", events, items, None, []), TimeCut(), "test")
    threshold = ThresholdConfig("recall", 0.9)
    config = RerankerConfig(**WORDLESS, refit=False, threshold=threshold, candidates_per_source=per_source)
    reranker = Reranker(config, verbose=False).fit(trial.interactions, trial.item_frame)
    table = compare_systems(reranker, trial)
    whole = reranker.recommend(list(trial.user_ids), k=None, at=trial.at)
    assert table.cut["n"] == len(whole)
    assert table.cut == tested_lists.tested_cut(whole, trial)
    assert table.probabilities == tested_lists.tested_probabilities(whole, trial)
    first = ranking_from_frame(reranker.recommend(list(trial.user_ids), k=100, at=trial.at), trial)
    np.testing.assert_array_equal(table.fused.values, first.values)
    np.testing.assert_array_equal(table.fused.offsets, first.offsets)
    assert (table.fused.lengths == 100).all()
    if per_source == 100:  # of the first hundred alone nearly every target is kept
        assert len(whole) > 150 * len(trial.cases)
        hundred = whole[whole["rank"] <= 100]
        assert tested_lists.tested_cut(hundred, trial)["recall"] > table.cut["recall"] + 0.03


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
