"""Explanations: order, sums and signs of the parts, history effects recomputed, and text that cannot break a page."""

import numpy as np
import pandas as pd
import pytest

from llm_rerank.recommendation import explanation as explanation_module
from llm_rerank.recommendation.explanation import Contribution, Explanation, HistoryEffect

PARTS = [
    Contribution("ease", "collaborative", 0.5),
    Contribution("als", "collaborative", -2.0),
    Contribution("price_gap", "context", 1.0),
    Contribution("sales_7d", "context", 0.0),
    Contribution("<b>&", "context", 0.25),
]


def explained(**changes):
    values = {
        "user_id": "<u>",
        "item_id": "<i>",
        "title": "Nuts & <Bolts>",
        "score": -0.25,
        "probability": 0.125,
        "contributions": PARTS,
        "history": [HistoryEffect("h", "Wrench <small>", -0.75)],
    }
    return Explanation(**{**values, **changes})


def test_parts_are_summed_by_group_and_ordered_by_size():
    assert explained().by_group() == {"collaborative": -1.5, "context": 1.25}
    assert [part.name for part in explained().strongest()] == ["als", "price_gap", "ease", "<b>&"]  # no zero
    assert [part.name for part in explained().strongest(2)] == ["als", "price_gap"]


def test_text_says_score_probability_groups_and_history():
    lines = str(explained()).splitlines()
    assert lines[0] == "Nuts & <Bolts> for <u>: score -0.250, probability 0.1250"
    assert "  collaborative  -1.500" in lines
    assert lines[-2:] == ["  history items, by what the score loses without them", "    -0.750  Wrench <small>"]
    bare = str(explained(history=[], probability=float("nan"), title=""))
    assert bare.splitlines()[0] == "<i> for <u>: score -0.250"
    assert "history" not in bare


def test_what_items_and_users_are_called_cannot_break_a_page():
    page = explained()._repr_html_()
    for raw, escaped in (
        ("Nuts & <Bolts>", "Nuts &amp; &lt;Bolts&gt;"),
        ("for <u>", "for &lt;u&gt;"),
        ("Wrench <small>", "Wrench &lt;small&gt;"),
        ("<b>&<", "&lt;b&gt;&amp;"),
    ):
        assert raw not in page
        assert escaped in page


def test_each_effect_is_the_score_lost_without_the_item_strongest_first(fitted, shop):
    events, items = shop
    item, moment = items["item_id"][4], int(events["timestamp"].max()) + 1
    history = list(items["item_id"][[0, 20, 2, 40, 7]])
    explanation = fitted.explain("anyone", item, history=history, at=moment)
    pair = pd.DataFrame({"user_id": ["anyone"], "item_id": [item]})

    def score(taken):
        rows = {"user_id": "anyone", "item_id": taken, "timestamp": range(moment - len(taken), moment)}
        return fitted.rerank(pair, histories=pd.DataFrame(rows), at=moment).iloc[0]

    assert explanation.score == pytest.approx(score(history)["score"], abs=1e-6)
    assert explanation.probability == pytest.approx(score(history)["probability"], abs=1e-6)
    effects = [effect.effect for effect in explanation.history]
    assert len(effects) == 5
    assert np.all(np.diff(np.abs(effects)) <= 0)
    assert min(effects) < 0 < max(effects)  # another theme's item counts against
    titles = items.set_index("item_id")["title"]
    for effect in explanation.history:
        assert effect.title == titles[effect.item_id]
        rest = history.copy()
        rest.remove(effect.item_id)
        # times move by one second; a position in the history is not a day
        assert effect.effect == pytest.approx(explanation.score - score(rest)["score"], abs=2e-3)


def test_of_a_long_history_the_newest_distinct_items_are_explained(fitted, shop, monkeypatch):
    ids = list(shop[1]["item_id"])
    long = [*ids[:60], ids[59], ids[3]]  # item 3 is the newest, though it came early too
    explanation = fitted.explain("anyone", ids[4], history=long)
    assert {effect.item_id for effect in explanation.history} == {ids[3], *ids[11:60]}
    monkeypatch.setattr(explanation_module, "MOST_HISTORY_ITEMS", 2)
    assert {effect.item_id for effect in fitted.explain("anyone", ids[4], history=long).history} == {ids[3], ids[59]}
