"""Lists that an upstream recommender showed after the cut, reranked: figures by hand, leaks, refusals, the report."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.evaluation.report import write_report
from llm_rerank.evaluation.shown_lists import UpstreamLists, judge_shown, shown_in_words
from llm_rerank.evaluation.systems import evaluate_shop
from llm_rerank.types import DataError, DataReport, Ragged
from tests.recommendation.test_upstream import CONFIG, shown
from tests.shops import make_shop

CUT = "2021-06-14"


@pytest.fixture(scope="module")
def tables():
    events, items = make_shop()
    return events, items, shown((events, items))


@pytest.fixture(scope="module")
def evaluation(tables):
    events, items, lists = tables
    return evaluate_shop(events, items, impressions=lists, cut=CUT, config=CONFIG, verbose=False)


def upstream_lists(tables, cut, most_users=10_000, **columns):
    events, items, lists = tables
    catalogue = validate_items(items, report=DataReport())
    known = validate_interactions(events, catalogue, report=DataReport())
    return UpstreamLists.read(lists.assign(**columns), known, catalogue, cut, "auto", most_users, 0)


class Told:
    """A reranker that ranks by the upstream score turned over, and was fitted on no lists."""

    saved = type("Saved", (), {"fitted": type("Fitted", (), {"upstream_stage": None, "report": {}})})

    def rerank(self, asked, at):
        self.asked, self.at = asked, at
        rank = asked.groupby("user_id")["upstream_score"].rank(method="first", na_option="bottom")
        return asked.assign(rank=rank.astype(int)).sample(frac=1.0, random_state=0)  # rows come back in another order


def test_figures_by_hand(tables):
    lists = upstream_lists(tables, int(pd.Timestamp(CUT).timestamp()))
    cases = replace(
        lists.shown.cases.take(np.arange(3)),
        candidates=Ragged.from_lists([[4, 5, 6, 0], [1, 2], [7, 8]]),
        targets=Ragged.from_lists([[4], [], [8]]),
    )
    users = np.array(["a", "b", "c"], dtype=object)
    scores = np.array([3, 2, 1, 9, 2, 1, 1, np.nan], dtype=np.float32)  # c's target has none, and comes last
    seen = Ragged.from_lists([[0, 3], [], []])  # a had the first of the list before
    few = replace(lists.shown, cases=cases, seen=seen, scores=scores, user_ids=users)
    ids, told = np.array([f"i{code}" for code in range(9)], dtype=object), Told()
    found = judge_shown(told, few, 77, ids)
    assert told.at == 77 and told.asked["item_id"].tolist() == ["i4", "i5", "i6", "i0", "i1", "i2", "i7", "i8"]
    assert (found["n_lists"], found["n_cases"], found["learned"]) == (3, 2, False)
    assert found["n_candidates"] == pytest.approx(8 / 3)
    # upstream: first and second place; turned over: third, and second still, for a score that is none has no rank
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert found["systems"]["upstream"]["ndcg@10"]["mean"] == pytest.approx((1 + second) / 2)
    assert found["systems"]["fused"]["ndcg@10"]["mean"] == pytest.approx((third + second) / 2)
    assert found["systems"]["upstream"]["map@10"]["mean"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["test"]["difference"] == pytest.approx((third - 1) / 2)
    assert "learn from no earlier lists" in shown_in_words(found)
    # two lists are too few for an interval; p holds for any number
    assert np.isnan(found["test"]["ci95"]).all() and np.isnan(found["systems"]["fused"]["ndcg@10"]["ci95"]).all()
    assert "[" not in shown_in_words(found) and f"p = {found['test']['p']:.4f}; the order" in shown_in_words(found)
    assert "a gain over it is a lower bound and a loss is no evidence" in shown_in_words(found)
    assert (found["n_single"], found["n_later"]) == (0, 0)
    assert "single item" not in shown_in_words(found) and "later lists" not in shown_in_words(found)
    said = shown_in_words({**found, "n_single": 2, "n_later": 1_234, "not_learned": "they end before it"})
    assert "2.7 items each (without 1,234 rows of their later lists) (warning: 2 of 3 lists of impressions have" in said
    assert "count for nothing there, for they end before it" in said and "no earlier lists" not in said
    nothing = judge_shown(told, replace(few, cases=replace(cases, targets=Ragged.from_lists([[], [], []]))), 77, ids)
    assert nothing["systems"] == {} and "nothing was taken from any" in shown_in_words(nothing)


def test_the_fit_reads_lists_before_the_cut_alone_and_the_rest_are_judged(tables, evaluation):
    cut = evaluation.trial.at
    _, _, impressions = tables
    lists = upstream_lists(tables, cut)
    assert 0 < len(lists.past) < len(impressions)
    assert lists.past["timestamp"].max() < pd.Timestamp(cut, unit="s")
    kept = evaluation.reranker.saved.impressions
    assert kept.times.max() < cut and len(kept) == len(lists.past)
    judged = evaluation.table.shown
    late = impressions[impressions["timestamp"] >= cut]
    assert judged["n_lists"] == late["user_id"].nunique() > 100
    assert judged["learned"]
    # the upstream score knows a little, behaviour and text know more
    assert judged["test"]["ci95"][0] > 0.05
    assert shown_in_words(judged) in str(evaluation.table)
    assert evaluation.table.to_dict()["shown"] == judged
    fewer = upstream_lists(tables, cut, most_users=40)
    assert len(fewer.shown.cases) == 40 and len(fewer.past) == len(lists.past)


def test_what_cannot_be_compared_is_refused_before_the_fit(tables):
    cut = int(pd.Timestamp(CUT).timestamp())
    with pytest.raises(DataError, match="each user's last new items are held out; give events dates and a cut"):
        upstream_lists(tables, None)
    with pytest.raises(DataError, match="impressions end before the cut .*give an earlier cut"):
        upstream_lists(tables, cut, timestamp=cut - 1)
    with pytest.raises(DataError, match="no row of impressions from the cut on .* has an upstream_score"):
        upstream_lists(tables, cut, upstream_score=np.nan)


def test_the_report_shows_both_orders(evaluation, tmp_path):
    write_report(tmp_path / "report.html", evaluation)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Lists of your recommender, tested" in page and "Both orders of the same lists" in page
    assert "a loss is no evidence" in page and "What stood first was looked at more" in page
    assert "against your recommender" in page and f"{evaluation.table.shown['test']['difference']:+.4f}" in page
    nothing = {**evaluation.table.shown, "n_cases": 0, "systems": {}, "test": {}}
    write_report(tmp_path / "report.html", replace(evaluation, table=replace(evaluation.table, shown=nothing)))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nothing was taken from any" in page and "against your recommender" not in page


def test_the_command_compares_them(tables, tmp_path):
    events, items, lists = tables
    for name, table in (("events", events), ("items", items.drop(columns="theme")), ("lists", lists)):
        table.rename(columns={"user_id": "customer"}).to_csv(tmp_path / f"{name}.csv", index=False)
    arguments = ["evaluate", *(str(tmp_path / f"{name}.csv") for name in ("events", "items"))]
    arguments += ["--impressions", str(tmp_path / "lists.csv"), "--column", "customer=user_id", "--cut", CUT]
    arguments += ["--encoder", "none", "--sequence", "off", "--cross-encoder", "off", "--no-refit", "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert "lists that the upstream recommender showed after the cut: " in result.output
    assert json.loads((tmp_path / "out.json").read_text())["shown"]["n_cases"] > 100
