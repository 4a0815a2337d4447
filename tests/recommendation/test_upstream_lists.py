"""Which rows of a log are the lists that an upstream recommender showed, and what a model says that could use none."""

from dataclasses import replace

import pandas as pd
import pytest

from llm_rerank.config import ThresholdConfig
from llm_rerank.recommendation.decision_facts import OTHER_LISTS
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.upstream import shown_lists
from llm_rerank.types import DataReport
from tests.planted import events_of
from tests.recommendation.test_upstream import CONFIG, shown


def test_of_lists_shown_at_one_time_the_first_is_read():
    events = events_of([(0, 0, 10), (0, 1, 130)], 5, time_kind="time")
    rows = [("u0", 1, 100, 7, 0.5), ("u0", 2, 100, 8, 0.5), ("u0", 3, 100, 7, 0.25), ("u0", 4, 120, 9, 0.5)]
    impressions = pd.DataFrame(rows, columns=["user_id", "item", "time", "list", "upstream_score"])
    found = shown_lists(impressions, events, events.take(events.times < 100), 100)
    assert found.cases.candidates[0].tolist() == [1, 3]
    assert (found.scores.tolist(), found.n_later) == ([0.5, 0.25], 2)


def test_a_log_that_stamps_each_row_is_read_as_the_lists_that_were_shown_by_its_list_id(shop):
    lists = shown(shop)
    place = lists.groupby("user_id").cumcount()
    stamped = lists.assign(timestamp=lists["timestamp"] + place, list_id="l")  # the ids are of each user
    named, unnamed = DataReport(), DataReport()
    wanted, found, parted = (
        read_shop(CONFIG, *shop, None, table, None, "auto", report)
        for table, report in ((lists, DataReport()), (stamped, named), (stamped.drop(columns="list_id"), unnamed))
    )
    pd.testing.assert_frame_equal(found[3], wanted[3])
    assert named.advice == [] and "have a single item" in unnamed.advice[0]
    events, shown_rows = parted[0], parted[3]
    holdout = plan_holdout(events, 0, FitLog(verbose=False))
    cases = shown_lists(shown_rows, events, holdout.past, holdout.as_of)
    assert cases.cases.candidates.lengths.max() == 1
    n_late = int((shown_rows["time"] >= holdout.as_of).sum())
    assert cases.n_later == n_late - len(cases.cases) > 1_000


def test_rows_of_later_lists_are_counted_in_the_fit(shop):
    lists = shown(shop)
    again = lists.assign(timestamp=lists["timestamp"] + 86_400)
    said = str(Reranker(CONFIG, verbose=False).fit(*shop, impressions=pd.concat([lists, again])).report())
    assert "upstream lists: each user's first one at or after the cut counts; " in said


def test_a_model_remembers_why_it_used_no_impressions(shop, tmp_path):
    lists = shown(shop).drop(columns="upstream_score")
    Reranker(CONFIG, verbose=False).fit(*shop, impressions=lists).save(tmp_path / "shop")
    model = Reranker.load(tmp_path / "shop", verbose=False)
    why = "the fit was given impressions and could use none of them: impressions have no upstream_score"
    asked = shown(shop)[["user_id", "item_id", "upstream_score"]].iloc[:40]
    model.config = replace(model.config, threshold=ThresholdConfig("probability", 0.01))
    with pytest.warns(UserWarning, match=f"counts for nothing: {why}") as told:
        facts = model.rerank(asked).attrs["decision"]
    assert not any("fit with impressions" in str(warning.message) for warning in told)
    assert facts["no_guarantee"] != OTHER_LISTS
