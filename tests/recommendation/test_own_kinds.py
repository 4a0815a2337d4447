"""Kinds of event with the shop's own names: what a fit or an update had may come one by one, and counts the same."""

import json
import shutil

import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.folders import open_folder, save_folder
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.recommendation.answering import Question, answer_each
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.live_events import EventError
from llm_rerank.recommendation.questions import cases_of_questions, prepare
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.storage import write_json
from tests.shops import make_shop

OWN = {"view": "Ansicht", "purchase": "Kauf"}
SPECS = [ComponentSpec("item_knn", "collaborative", ItemKNN)]


@pytest.fixture(scope="module")
def tables():
    events, items = make_shop(n_users=150)
    events["event"] = events["event"].map(OWN)
    events.loc[::50, "event"] = "Merkliste"
    return events, items


def fitted(tables, **settings):
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30, **settings)
    return Reranker(config, components=SPECS, verbose=False).fit(*tables)


@pytest.fixture(scope="module")
def saved_model(tables, tmp_path_factory):
    """A folder of a shop whose one success is called "Kauf"; no test may write to it."""
    folder = tmp_path_factory.mktemp("own") / "shop"
    fitted(tables, target_events=("Kauf",)).save(folder)
    return folder


@pytest.fixture
def folder(saved_model, tmp_path):
    return shutil.copytree(saved_model, tmp_path / "shop")


def event(item, kind, user="new"):
    return {"user_id": user, "item_id": item, "event": kind}


def held(shop, user="new"):
    """Of each event of a user: its weight, and whether it counts as a target."""
    return [(row["weight"], row["counts_as_target"]) for row in shop.export(user)["events"]]


def test_they_count_as_an_update_counts_them_and_survive_folding_and_a_refit(folder, tables):
    ids = tables[1]["item_id"]
    given = [event(ids[0], "Kauf"), event(ids[1], " kauf"), event(ids[2], "MERKLISTE"), event(ids[3], "purchase")]
    with LiveShop(folder, components=SPECS) as shop:
        now = int(shop.reranker().saved.events.times[-1]) + 60
        assert len(shop.record(given, now=now).accepted) == 4
        expected = [(1.0, True), (1.0, True), (1.0, False), (1.0, False)]
        assert held(shop) == expected
        by_update = Reranker.load(folder, components=SPECS, verbose=False)
        by_update.update(pd.DataFrame(given).assign(timestamp=now))
        assert [(row["weight"], row["counts_as_target"]) for row in by_update.export("new")["events"]] == expected
        shop.compact()
    with LiveShop(folder, components=SPECS) as shop:  # from the files alone
        assert not shop.is_behind
        assert held(shop) == expected
        shop.refit()
        assert held(shop) == expected
        assert all(row["learned_from"] for row in shop.export("new")["events"])
        assert len(shop.record([event(ids[4], "Merkliste")], now=now + 60).accepted) == 1


def test_a_kind_that_no_table_had_is_refused_until_one_has(folder, tables):
    item = tables[1]["item_id"][0]
    with LiveShop(folder, components=SPECS) as shop:
        with pytest.raises(EventError, match=r"is 'Abo'; .* interaction, kauf, ansicht, merkliste; a kind of the"):
            shop.record([event(item, "Abo")])
    reranker = Reranker.load(folder, components=SPECS, verbose=False)
    later = int(reranker.saved.events.times[-1]) + 60
    reranker.update([{**event(item, "Abo"), "timestamp": later}])
    reranker.update(pd.DataFrame([{**event(item, "Gutschein"), "timestamp": later}]))
    reranker.save(folder)
    with LiveShop(folder, components=SPECS) as shop:
        assert len(shop.record([event(item, "abo"), event(item, "gutschein")]).accepted) == 2


def had(saved, item, kind):
    """Whether a newcomer has had an item of which they bring one event."""
    question = prepare(Question(None, events=[{"item_id": item, "event": kind}]), saved)
    return len(cases_of_questions([question], saved)[1].values) == 1


def test_without_a_rule_each_of_them_is_a_target(tables, tmp_path):
    reranker = fitted(tables)
    assert reranker.saved.target_events == ()
    reranker.save(tmp_path / "shop")
    item = tables[1]["item_id"][0]
    assert had(reranker.saved, item, "Merkliste") and not had(reranker.saved, item, "view")
    with LiveShop(tmp_path / "shop", components=SPECS) as shop:
        shop.record([event(item, "Merkliste"), event(item, "view")])
        assert held(shop) == [(1.0, True), (pytest.approx(0.2), False)]


def test_fresh_events_of_a_question_may_be_of_them(saved_model, tables):
    reranker = Reranker.load(saved_model, components=SPECS, verbose=False)
    item = tables[1]["item_id"][0]
    assert had(reranker.saved, item, "Kauf") and not had(reranker.saved, item, "Merkliste")
    asked = [Question(None, events=[{"item_id": item, "event": kind}]) for kind in ("Kauf", "Kauff")]
    taken, refused = answer_each(reranker, asked)
    assert len(taken.item_ids)
    assert isinstance(refused, EventError) and refused.field == "events[0].event"


def test_a_folder_that_does_not_say_which_it_had_takes_those_of_its_rule(folder, tables):
    content = open_folder(folder)
    values = json.loads((content / "config.json").read_text())
    assert values.pop("own_kinds") == ["ansicht", "kauf", "merkliste"]

    def earlier(place):
        shutil.copytree(content, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        write_json(place / "config.json", values)

    save_folder(folder, earlier)
    item = tables[1]["item_id"][0]
    with LiveShop(folder, components=SPECS) as shop:
        assert len(shop.record([event(item, "Kauf")]).accepted) == 1
        with pytest.raises(EventError, match="is 'Merkliste'"):
            shop.record([event(item, "Merkliste")])
