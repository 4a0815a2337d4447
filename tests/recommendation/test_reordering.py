import numpy as np
import pandas as pd
import pytest

from llm_rerank import ChatRanker
from llm_rerank.recommendation.reordering import reorder_first
from llm_rerank.types import DataError
from tests.word_server import WordServer, serving

TEXTS = {"pot": "tea pot", "cup": "tea cup", "helmet": "bicycle helmet", "lamp": "lamp", "pump": "bicycle pump"}
LISTS = {"u1": ["pot", "cup", "helmet", "lamp", "pump"], "u2": ["lamp", "helmet"], "u3": ["pump", "pot"]}
HISTORIES = {"u1": ["red bicycle"], "u3": ["tea"]}


@pytest.fixture
def result():
    rows = [(user, item, rank + 1) for user, items in LISTS.items() for rank, item in enumerate(items)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
    frame["score"] = np.linspace(1, 0, len(frame))
    frame.attrs["decision"] = {"rule": None}
    return frame


@pytest.fixture
def server():
    return WordServer()


@pytest.fixture
def ranker(server):
    with serving(server) as url:
        yield ChatRanker("words", base_url=url, backoff_s=0.01, retries=0)


def orders(frame):
    return {user: rows["item_id"].tolist() for user, rows in frame.groupby("user_id", sort=False)}


def test_places_are_blended_within_the_first(result, ranker, server):
    """Of u1 the ranker says helmet, pot, cup, lamp. Half of both: pot (0 + 1)/2, helmet 1, cup 1.5, lamp 3."""
    before = result.copy()
    found = reorder_first(result, ranker, HISTORIES, TEXTS, depth=4, weight=0.5)
    assert orders(found) == {
        "u1": ["pot", "helmet", "cup", "lamp", "pump"],  # the fifth, which would come first, was not asked about
        "u2": ["lamp", "helmet"],  # no history
        "u3": ["pump", "pot"],  # (0 + 1)/2 each: as before
    }
    assert found["rank"].tolist() == [1, 2, 3, 4, 5, 1, 2, 1, 2]
    assert found["rank_before"].tolist() == [1, 3, 2, 4, 5, 1, 2, 1, 2]
    np.testing.assert_array_equal(found["rank_of_ranker"], [2, 1, 3, 4, np.nan, np.nan, np.nan, 2, 1])
    assert found.set_index(["user_id", "item_id"])["score"].to_dict() == (
        result.set_index(["user_id", "item_id"])["score"].to_dict()
    )
    assert found.attrs == result.attrs
    pd.testing.assert_frame_equal(result, before)
    assert len(server.bodies) == 2
    assert not [body for body in server.bodies if b"u1" in body or b"u3" in body]


def test_the_ends_of_the_weight(result, ranker):
    assert orders(reorder_first(result, ranker, HISTORIES, TEXTS, weight=0)) == LISTS
    found = orders(reorder_first(result.sample(frac=1, random_state=1), ranker, HISTORIES, TEXTS, weight=1))
    assert found["u1"] == ["helmet", "pump", "pot", "cup", "lamp"]
    assert found["u3"] == ["pot", "pump"]


def test_a_list_without_an_answer_stays(result, ranker, server):
    server.always = "I would rather not."
    with pytest.warns(UserWarning, match="2 of 2 lists got no order"):
        found = reorder_first(result, ranker, HISTORIES, TEXTS, weight=1)
    assert orders(found) == LISTS
    assert found["rank_of_ranker"].isna().all()


def test_items_without_a_text_keep_their_place(result, ranker):
    found = reorder_first(result, ranker, HISTORIES, TEXTS | {"cup": ""}, weight=1)
    assert orders(found)["u1"] == ["helmet", "cup", "pump", "pot", "lamp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"weight": 1.5}, "weight 1.5"),
        ({"texts": {"pot": "x"}}, "texts lacks the item 'cup'"),
        ({"result": pd.DataFrame({"user_id": []})}, "lacks the columns item_id, rank"),
        ({"result": []}, "give a pandas frame"),
    ],
)
def test_what_cannot_be_done_is_said(result, ranker, change, message):
    given = {"result": result, "ranker": ranker, "histories": HISTORIES, "texts": TEXTS} | change
    with pytest.raises(DataError, match=message):
        reorder_first(**given)


def test_empty(ranker, result):
    found = reorder_first(result[:0], ranker, HISTORIES, TEXTS)
    assert len(found) == 0
    assert {"rank_before", "rank_of_ranker"} <= set(found.columns)
