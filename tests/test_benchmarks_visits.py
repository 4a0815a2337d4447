"""The benchmark of what a held-out event's history knows of its own visit: its arithmetic by hand, and a run."""

import pandas as pd
import pytest

from benchmarks import held_out_visits
from benchmarks.held_out_visits import share_with_look, visits_of
from llm_rerank.data import splits
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.data.splits import last_targets
from llm_rerank.types import DataReport

HOUR = 3_600


def shop():
    """Each user buys item 0 and, 100 days later, item 1, which a looks at an hour before, b a week before, c never."""
    rows = []
    for user, before in (("a", HOUR), ("b", 7 * 24 * HOUR), ("c", None)):
        start = 1_700_000_000
        rows.append((user, 0, start, "purchase"))
        rows.append((user, 1, start + 2_400 * HOUR, "purchase"))
        if before is not None:
            rows.append((user, 1, start + 2_400 * HOUR - before, "view"))
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "event"])
    items = pd.DataFrame({"item_id": [0, 1], "title": ["tent", "lamp"]})
    report = DataReport()
    return validate_interactions(events, validate_items(items, report=report), report=report)


@pytest.mark.parametrize(("seconds", "share"), [(0, 2 / 3), (24 * HOUR, 1 / 3), (10**10, 0)])
def test_a_look_counts_where_the_decision_comes_after_it(seconds, share):
    events = shop()
    usual = splits.VISIT_SECONDS
    with visits_of(seconds):
        assert share_with_look(events, last_targets(events)) == (pytest.approx(share), 3)
    assert splits.VISIT_SECONDS == usual


def test_on_the_bundled_shop_the_librarys_questions_are_as_hard_as_the_use():
    report = held_out_visits.main(["--users", "500"])
    shares = {name: entry["share"] for name, entry in report["share_with_look"].items()}
    assert shares["at the purchase"] > 3 * shares["time window"]
    assert shares["day"] == pytest.approx(shares["time window"], abs=0.05)
    before, now = report["fits"].values()
    assert {before["protocol"], now["protocol"]} == {"positions"}
    assert before["said"]["mean_probability_top_10"] > 1.5 * now["said"]["mean_probability_top_10"]
    assert before["ndcg_on_fold_g"] > 2 * now["ndcg_on_fold_g"]
