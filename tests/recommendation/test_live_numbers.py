"""A shop whose ids are whole numbers, and clients that write them as texts or as floats: nobody gets lost."""

import sqlite3

import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from tests.shops import make_shop

FIRST_ITEM = 100
WITH_TEXT = {"item_id": "sku-9", "title": "premium bike lock"}


@pytest.fixture(scope="module")
def fitted():
    events, items = make_shop(120)
    number = {name: FIRST_ITEM + place for place, name in enumerate(items["item_id"])}
    items = items.assign(item_id=items["item_id"].map(number))
    events = events.assign(item_id=events["item_id"].map(number), user_id=events["user_id"].str[1:].astype(int))
    return Reranker(RerankerConfig(encoder=None, sequence="off"), verbose=False).fit(events, items)


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "shop")
    return tmp_path / "shop"


def n_events(live):
    return len(live.reranker().saved.events)


def test_events_that_name_numbers_as_texts_outlive_a_restart_beside_a_text_id(folder):
    with LiveShop(folder) as live:
        before = n_events(live)
        live.add_items([WITH_TEXT])
        for place in range(20):
            live.record([{"user_id": "7", "item_id": str(FIRST_ITEM + place), "event": "view"}])
        live.record([{"user_id": 7, "item_id": FIRST_ITEM}, {"user_id": 7, "item_id": "sku-9"}])
        assert n_events(live) == before + 22
    with LiveShop(folder) as live:
        assert n_events(live) == before + 22
        live.compact()
    with LiveShop(folder) as live:
        assert n_events(live) == before + 22


def test_candidates_and_users_are_known_beside_text_ids(fitted):
    reranker = Reranker.from_saved(fitted.saved)
    candidates = pd.DataFrame({"user_id": 7, "item_id": range(FIRST_ITEM, FIRST_ITEM + 9)})
    guest = {"user_id": "guest-1", "item_id": FIRST_ITEM, "timestamp": 1_600_000_000, "event": "view"}
    reranker.update([guest], [WITH_TEXT])
    expected = reranker.rerank(candidates)["score"].tolist()
    assert expected != reranker.rerank(candidates.assign(user_id="a newcomer"))["score"].tolist()
    for users, items in ((str, str), (int, str), (str, int)):
        asked = candidates.assign(user_id=candidates["user_id"].map(users), item_id=candidates["item_id"].map(items))
        assert reranker.rerank(asked)["score"].tolist() == expected
    both = reranker.recommend([7, "guest-1"], k=5)
    assert both[both["user_id"] == 7]["item_id"].tolist() == reranker.recommend(["7"], k=5)["item_id"].tolist()


def test_a_user_named_by_a_float_is_forgotten_in_the_log_too(folder):
    """pandas makes floats of whole numbers beside a missing one."""
    requests = pd.DataFrame({"user_id": [7, None]})["user_id"].dropna().tolist()
    with LiveShop(folder) as live:
        live.record([{"user_id": 7, "item_id": FIRST_ITEM, "review": "my phone is 555-0199"}])
        live.remember_answer("q1", 7, [FIRST_ITEM])
        live.remember_answer("q2", 7.0, [FIRST_ITEM])
        assert live.forget(requests).forgotten == [7]
        assert live.export(7) is None
    with sqlite3.connect(folder / "live.sqlite") as log:
        assert log.execute("SELECT count(*) FROM entries WHERE user IS NOT NULL").fetchone() == (0,)
        assert log.execute("SELECT count(*) FROM answers").fetchone() == (0,)
    log.close()
