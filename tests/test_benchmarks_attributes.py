"""The benchmark of users known by attributes alone: planted tastes, a fit without those asked, the bundled shop."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import attribute_users
from benchmarks.attribute_users import buyers_by_attributes, in_words, one_hot, without_users
from llm_rerank.data.schema import validate_interactions, validate_items, validate_users
from llm_rerank.types import DataReport

PEOPLE = pd.DataFrame({"user_id": range(6), "age": ["young", "young", "young", "old", "old", None]})


def shop():
    """Young users 0 to 2 take items 0 and 1, old ones 3 and 4 items 2 and 3; user 5, of no known age, item 4."""
    items = pd.DataFrame({"item_id": range(5), "title": [f"item {code}" for code in range(5)]})
    taken = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 2), (3, 3), (4, 2), (5, 4)]
    events = pd.DataFrame(taken, columns=["user_id", "item_id"]).assign(timestamp=range(len(taken)))
    report = DataReport()
    catalogue, people = validate_items(items, report=report), validate_users(PEOPLE, report=report)
    return validate_interactions(events, catalogue, users=people, report=report)


def test_attributes_as_columns_and_as_words():
    assert one_hot(PEOPLE).tolist() == [[0, 0, 1]] * 3 + [[1, 0, 0]] * 2 + [[0, 1, 0]]  # old, unknown, young
    frame = pd.DataFrame({"user_id": [1, 2], "home_town": ["Ghent", None], "age": [30, 40]})
    assert in_words(frame) == ["home town Ghent, age 30", "age 40"]


def test_users_like_these_took_these_items():
    scores = buyers_by_attributes(shop(), one_hot(PEOPLE), np.array([0, 3]))
    young, old = np.argsort(-scores, axis=1)
    assert young[:2].tolist() == [0, 1] and old[:2].tolist() == [2, 3]
    # a ridge of one on three standardised columns: between the mean over all, 3 of 6, and the young users' 3 of 3
    assert 0.6 < scores[0, 0] < 1.0


def test_whoever_is_asked_for_is_not_in_the_fit():
    past = shop()
    asked = np.array([5])
    left = without_users(past, asked)
    assert len(past) - len(left) == 1 and 5 not in left.users
    assert buyers_by_attributes(left, one_hot(PEOPLE), np.array([5]))[0, 4] == pytest.approx(0.0, abs=1e-6)
    assert buyers_by_attributes(past, one_hot(PEOPLE), np.array([5]))[0, 4] > 0.3


def test_on_most_of_the_bundled_shop(smaller_sample, tmp_path):
    report = attribute_users.main([*smaller_sample, "--folds", "2", "--out", str(tmp_path / "report.json")])
    assert report["base"] == "recent_popularity" and report["n"] > 100
    ways = report["ways"]
    assert set(ways) >= {"popularity", "regression", "sgd_mf", "encoder", "recent_popularity + encoder"}
    # the sample's users have attributes that say nothing of taste
    assert ways["regression"]["difference"]["mean"] < 0 < ways["regression"]["ndcg@10"]
