"""Fresh events and items without training: what is known at once equals a recount, what waits is said, rules hold."""

import copy
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import ItemStatistics
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.risk_control import Guarantee, conditions_of
from llm_rerank.recommendation.specs import ComponentSpec, default_specs
from llm_rerank.recommendation.state import END_OF_TIME, settled_targets, target_kinds
from llm_rerank.recommendation.updating import updated
from llm_rerank.types import EVENT_ARRAYS, DataError
from tests.data.test_merging import assert_same_statistics
from tests.planted import CLOCK_START, DAY, cases_of

LATER = CLOCK_START + 400 * DAY


def event(user, item, time=LATER, kind="purchase", **more):
    return {"user_id": user, "item_id": item, "timestamp": time, "event": kind, **more}


def table(saved):
    """Events as rows that do not depend on codes of users."""
    events = saved.events
    frame = pd.DataFrame({name: getattr(events, name) for name in EVENT_ARRAYS if name != "users"})
    return frame.assign(user=events.user_ids[events.users])


def scorer(saved, name):
    return next(component.scorer for component in saved.fitted.components if component.name == name)


def with_guarantee(saved):
    """The same state as if its cut had been chosen with a guarantee."""
    cut = saved.fitted.stage.cut
    promised = Guarantee("missed_target", 0.1, 0.1, 500, 0.05, conditions_of("missed_target"))
    stage = replace(saved.fitted.stage, cut=replace(cut, guarantee=promised, no_guarantee=""))
    return replace(saved, fitted=replace(saved.fitted, stage=stage))


@pytest.fixture
def model(fitted):
    return copy.copy(fitted)  # its state is replaced, never written into


def test_an_event_changes_the_next_answer_and_no_snapshot(model, fitted):
    before = fitted.recommend(["u0"], k=None)
    item = before["item_id"][10]
    snapshot = copy.copy(model)
    report = model.update([event("u0", item, rating=5)])
    assert (report.n_events, report.n_new_users, report.new_items, report.dropped) == (1, 0, [], {})
    after = model.recommend(["u0"], k=None)
    assert item not in after["item_id"].tolist()
    assert model.saved.events.times[-1] == LATER
    pd.testing.assert_frame_equal(snapshot.recommend(["u0"], k=None), before)
    assert len(fitted.saved.events) + 1 == len(model.saved.events)


def test_a_newcomers_first_event_makes_a_list_of_their_own(model, shop):
    newcomer = model.recommend(["someone"])
    themes = shop[1].set_index("item_id")["theme"]
    garden = themes[themes == "garden"].index
    report = model.update([event("someone", garden[0], LATER), event("someone", garden[4], LATER + 60)])
    assert report.n_new_users == 1
    after = model.recommend(["someone"])
    assert (after["item_id"].map(themes) == "garden").mean() > (newcomer["item_id"].map(themes) == "garden").mean()


def test_updates_one_by_one_equal_one_batch_and_a_recount(fitted, shop):
    ids = shop[1]["item_id"]
    rng = np.random.default_rng(3)
    new = [
        event(
            rng.choice(["u0", "u5", "new a", "new b"]),
            ids[rng.integers(len(ids))],
            int(rng.choice([LATER + k, CLOCK_START + 3 * DAY + k])),  # some are late
            rng.choice(["purchase", "view", "cart"]),
            rating=float(rng.choice([np.nan, 2, 5])),
        )
        for k in range(24)
    ]
    single = fitted.saved
    _ = single.item_statistics  # known, so that it is carried on
    for one in new:
        single, _ = updated(single, [one])
    batch, report = updated(fitted.saved, pd.DataFrame(new).sort_values("timestamp"))
    assert report.n_events == 24
    assert "item_knn" in report.refreshed
    assert "recent_popularity" in report.refreshed
    assert "als" in report.stale
    assert single.known_statistics is not None
    columns = [name for name in table(single).columns]
    pd.testing.assert_frame_equal(table(single), table(batch)[columns])
    for saved in (single, batch):
        events, items = saved.events, saved.fitted.items
        anew = ItemStatistics.from_events(events, items, END_OF_TIME, saved.sentiment)
        assert_same_statistics(saved.item_statistics, anew)
        assert not saved.in_fit[np.isin(events.times, [one["timestamp"] for one in new])].any()
        assert saved.in_fit.sum() == len(fitted.saved.events)
        assert saved.counted.all()
        cases = cases_of([[code] for code in range(len(items))], [[]] * len(items))
        for component in saved.fitted.components:
            if component.name in report.refreshed:
                spec = next(s for s in default_specs(len(items), encoder=None) if s.name == component.name)
                recount = spec.make(**component.settings).fit(events, items, seed=0)
                np.testing.assert_allclose(
                    component.scorer.score_catalogue(cases), recount.score_catalogue(cases), rtol=1e-5, atol=1e-6
                )


def test_without_a_refit_counting_scorers_take_in_what_was_held_out_of_the_user_too(shop):
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30, refit=False)
    spec = ComponentSpec("item_knn", "collaborative", ItemKNN)
    saved = Reranker(config, components=[spec], verbose=False).fit(*shop).saved
    assert not saved.in_fit.all()
    assert (saved.counted == saved.in_fit).all()
    held_out = np.flatnonzero(~saved.in_fit)[0]
    user = saved.events.users[held_out]
    after, _ = updated(saved, [event(saved.events.user_ids[user], shop[1]["item_id"][3])])
    assert after.counted[after.events.users == user].all()
    assert not after.in_fit[after.events.users == user].all()
    cases = cases_of([[code] for code in range(30)], [[]] * 30)
    items = saved.fitted.items
    recount = ItemKNN().fit(after.events.take(after.counted), items).score_catalogue(cases)
    np.testing.assert_allclose(scorer(after, "item_knn").score_catalogue(cases), recount, rtol=1e-5, atol=1e-7)
    again, _ = updated(after, [event(saved.events.user_ids[user], shop[1]["item_id"][4], LATER + 9)])
    recount = ItemKNN().fit(again.events.take(again.counted), items).score_catalogue(cases)
    np.testing.assert_allclose(scorer(again, "item_knn").score_catalogue(cases), recount, rtol=1e-5, atol=1e-7)


def test_targets_are_those_of_the_fit_whatever_the_batch_holds(model, shop):
    # on its own this batch has no purchase, and "all but views" would make a cart a target
    item = shop[1]["item_id"][0]
    assert model.saved.target_events == ("purchase",)
    model.update([event("u0", item, kind="cart"), event("u1", item, LATER + 1)])
    assert model.saved.events.positive[-2:].tolist() == [False, True]
    model.update([event("u0", item, LATER + 2, kind="cart")])
    assert not model.saved.events.positive[-1]


def test_a_shop_without_purchases_takes_later_kinds_as_targets():
    assert settled_targets(None, ("purchase",)) == ("purchase",)
    assert settled_targets(None, ("interaction", "cart")) == ()
    assert settled_targets(("cart",), ("cart",)) == ("cart",)
    kinds = target_kinds((), {"view", "subscribe", ""})
    assert {"purchase", "cart", "interaction", "subscribe"} <= set(kinds)
    assert not {"view", "search", ""} & set(kinds)
    assert target_kinds(("cart",), {"subscribe"}) == ("cart",)


def test_a_text_id_finds_the_number_that_the_fit_had(shop):
    events, items = shop
    numbered = events.assign(user_id=events["user_id"].str[1:].astype(int))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30)
    spec = ComponentSpec("item_knn", "collaborative", ItemKNN)
    model = Reranker(config, components=[spec], verbose=False).fit(numbered, items)
    users = model.saved.events.n_users
    assert model.update([event("7", items["item_id"][0])]).n_new_users == 0
    assert model.saved.events.user_ids[model.saved.events.users[-1]] == 7
    assert model.update([event("x", items["item_id"][0])]).n_new_users == 1
    assert model.saved.events.n_users == users + 1


def test_new_and_changed_items_are_in_the_next_answer(model, shop):
    items = shop[1]
    knn = scorer(model.saved, "item_knn")
    known = items["item_id"][2]
    report = model.update(
        items=[
            {"item_id": "brand new", "title": "premium trowel", "brand": "Garden & Co", "price": 12, "theme": "garden"},
            {"item_id": known, "price": "99.50", "colour": "red"},
            {"item_id": items["item_id"][3], "title": items["title"][3]},
        ]
    )
    assert report.new_items == ["brand new"]
    assert report.changed_items == [known]
    frame = model.saved.fitted.items.frame
    assert frame["price"].tolist()[2] == 99.5
    assert frame["title"].tolist()[2] == items["title"][2]
    assert frame["description"].tolist()[2] == items["description"][2]
    assert frame["theme"].tolist()[2] == items["theme"][2]
    assert frame["colour"].tolist()[2] == "red"
    assert frame["colour"].isna().tolist()[:2] == [True, True]
    assert frame["price"].dtype == np.float64
    assert frame["price"].tolist()[3] == items["price"][3]
    texts = model.saved.fitted.items.texts
    assert "premium trowel" in texts[-1]
    assert "99.5" in texts[2]
    assert scorer(model.saved, "item_knn") is not knn
    assert model.saved.events.n_items == len(items) + 1
    asked = pd.DataFrame({"user_id": "u0", "item_id": ["brand new", known, items["item_id"][5]]})
    result = model.rerank(asked)
    assert result["score"].notna().all()
    recount = ItemStatistics.from_events(model.saved.events, model.saved.fitted.items, END_OF_TIME)
    np.testing.assert_array_equal(model.saved.item_statistics.log_prices, recount.log_prices)
    # the text alone brings the new item to those who like its theme
    assert "brand new" in model.recommend(["u0"], k=None)["item_id"].tolist()
    model.update([event("u0", "brand new")])
    assert "brand new" not in model.recommend(["u0"], k=None)["item_id"].tolist()


def test_cells_that_are_missing_keep_what_was_known_and_empty_ones_clear_it(model, shop):
    items = shop[1]
    first, second = items["item_id"][:2]
    model.update(items=pd.DataFrame({"item_id": [first, second], "brand": [None, ""], "price": [np.nan, np.nan]}))
    frame = model.saved.fitted.items.frame
    assert frame["brand"].tolist()[:2] == [items["brand"][0], ""]
    assert frame["price"].tolist()[:2] == items["price"].tolist()[:2]
    assert model.update(items=[{"item_id": first, "price": ""}]).changed_items == [first]
    assert np.isnan(model.saved.fitted.items.frame["price"][0])
    state = model.saved
    assert model.update(items=[{"item_id": first, "price": ""}]).changed_items == []
    assert model.saved.fitted is state.fitted


def test_events_may_name_an_item_of_the_same_update(model):
    report = model.update([event("u0", "just in")], [{"item_id": "just in", "title": "compact easel"}])
    assert (report.n_events, report.new_items) == (1, ["just in"])
    assert model.saved.events.items[-1] == len(model.saved.fitted.items) - 1


def test_what_was_taken_in_outlives_a_save(model, shop, tmp_path):
    model.update([event("u0", "i-new", review="lovely thing"), event("fresh", shop[1]["item_id"][0], LATER + 1)],
                 [{"item_id": "i-new", "title": "deluxe hammock", "brand": "B"}])  # fmt: skip
    model.save(tmp_path / "m")
    loaded = Reranker.load(tmp_path / "m", verbose=False)
    for name in ("in_fit", "counted", "sentiment"):
        np.testing.assert_array_equal(getattr(loaded.saved, name), getattr(model.saved, name))
    assert loaded.saved.target_events == ("purchase",)
    asked = pd.DataFrame({"user_id": np.repeat(["u0", "fresh"], 3), "item_id": ["i-new", *shop[1]["item_id"][:2]] * 2})
    pd.testing.assert_frame_equal(loaded.rerank(asked), model.rerank(asked), atol=1e-6)
    one, other = (copy.copy(m) for m in (loaded, model))
    for again in (one, other):
        again.update([event("u0", shop[1]["item_id"][9], LATER + 50)], [{"item_id": "i-2", "title": "travel ukulele"}])
    pd.testing.assert_frame_equal(one.rerank(asked), other.rerank(asked), atol=1e-6)


def test_the_report_says_what_was_dropped_and_what_is_stale(model, shop):
    report = model.update([event("u0", "unheard of"), event("u0", shop[1]["item_id"][0])])
    assert report.n_events == 1
    assert report.dropped == {"interactions: item is absent from items": 1}
    text = str(report)
    assert "1 events taken in" in text
    assert "item is absent" in text
    assert "until a refit: " in text
    assert set(report.refreshed) | set(report.stale) == {c.name for c in model.components}


def test_events_that_were_known_and_such_as_repeat_another_are_told_and_count_again(model, shop):
    items = shop[1]["item_id"]
    first = [event("u0", items[0]), event("newcomer", items[1], rating=4), event("u0", items[2], kind="view")]
    assert model.update(first).n_known == 0
    later = [*first[:2], event("u0", items[2], kind="cart"), event("u1", items[0]), event("u0", items[0], LATER + 1)]
    report = model.update([*later, first[0]])
    # of the six three say what was known; the first of them comes twice
    assert (report.n_events, report.n_known) == (6, 3)
    said = str(report).splitlines()
    assert "warning: 3 of these events were known already, exactly as they came, and count again" in said[1]
    assert said[2].startswith("warning: 1 of 6 rows of interactions repeat another exactly")
    framed = model.update(pd.DataFrame([*later, first[0]]))
    assert (framed.n_events, framed.n_known, framed.advice) == (6, 6, report.advice)
    assert int((model.saved.events.times == LATER).sum()) == 3 + 5 + 5


def test_events_ahead_of_the_clock_are_told(model, shop):
    ahead = int(time.time()) + 3 * DAY
    report = model.update([event("u0", shop[1]["item_id"][0], ahead)])
    assert "1 of 1 rows of interactions lie more than a day in the future" in str(report)


def test_guarantees_outlive_new_items_and_not_counted_events_or_changed_texts(fitted, shop):
    saved = with_guarantee(fitted.saved)
    item = shop[1]["item_id"][0]
    after, _ = updated(saved, items=[{"item_id": "new", "title": "premium easel"}])
    assert after.fitted.stage.cut.guarantee is not None
    counted, report = updated(after, [event("u0", item)])
    assert report.refreshed
    assert counted.fitted.stage.cut.guarantee is None
    assert "counted new events" in counted.fitted.stage.cut.no_guarantee
    learned_only = tuple(c for c in after.fitted.components if c.name in report.stale)
    not_counting = replace(after, fitted=replace(after.fitted, components=learned_only))
    assert updated(not_counting, [event("u0", item)])[0].fitted.stage.cut.guarantee is not None
    changed, _ = updated(after, items=[{"item_id": item, "title": "something else"}])
    cut = changed.fitted.stage.cut
    assert cut.guarantee is None
    assert "texts of items changed" in cut.no_guarantee
    assert changed.fitted.report["cut"] == cut.to_dict()
    assert "texts of items changed" in changed.fitted.report["lines"][-1]
    assert after.fitted.stage.cut.guarantee is not None


def test_what_breaks_a_rule_is_refused_and_changes_nothing(model, shop, tmp_path):
    state, item = model.saved, shop[1]["item_id"][0]
    with pytest.raises(DataError, match="neither interactions nor items"):
        model.update()
    with pytest.raises(DataError, match="columns maps 'customer', which no table has"):
        model.update([event("u0", item)], columns={"customer": "user_id"})
    with pytest.raises(DataError, match="item 'i-new' is new and has no title"):
        model.update(items=[{"item_id": "i-new", "price": 3}])
    with pytest.raises(DataError, match="times of kind 'position' and the fit had 'time'"):
        model.update([event("u0", item, time=5)])
    with pytest.raises(DataError, match="no column 'timestamp'"):
        model.update([{"user_id": "u0", "item_id": item}])
    with pytest.raises(DataError, match="no column 'timestamp'"):
        model.update([{"user_id": "u0", "item_id": item}], [{"item_id": "i-new", "title": "premium easel"}])
    assert model.saved is state
    model.save(tmp_path / "anonymous", histories=False)
    anonymous = Reranker.load(tmp_path / "anonymous", verbose=False)
    with pytest.raises(DataError, match="saved without histories, so no event can be added"):
        anonymous.update([event("u0", item)])
    grown = anonymous.update(items=[{"item_id": "i-new", "title": "premium easel", "price": 4.0}])
    assert grown.new_items == ["i-new"]
    assert anonymous.rerank(pd.DataFrame({"user_id": ["x"], "item_id": ["i-new"]}))["score"].notna().all()


def test_the_mapping_of_the_fit_serves_each_table_alone(model):
    item = model.saved.fitted.items.ids[3]
    mapping = {"kunde": "user_id", "sku": "item_id", "name": "title", "farbe": "colour", "punkte": "upstream_score"}
    events = pd.DataFrame({"kunde": ["u0"], "sku": [item], "timestamp": [LATER], "event": ["view"]})
    assert model.update(events, columns=mapping).n_events == 1
    items = pd.DataFrame({"sku": [item], "name": ["another tent"], "farbe": ["red"]})
    assert model.update(items=items, columns=mapping).changed_items == [item]
    state = model.saved
    with pytest.raises(DataError, match="columns maps 'rateing', which no table has"):
        model.update(events, columns={**mapping, "rateing": "rating"})
    with pytest.raises(DataError, match="columns maps 'farb', which no table has"):
        model.update(items=items, columns={**mapping, "farb": "colour"})
    with pytest.raises(DataError, match="columns maps 'skuu', which no table has"):
        model.update(events, items, columns={**mapping, "skuu": "item_id"})
    with pytest.raises(DataError, match="interactions has no column 'item_id'"):
        model.update(events, columns={"kunde": "user_id", "skuu": "item_id"})
    assert model.saved is state


def test_a_component_that_cannot_grow_is_named(model):
    class Fixed:
        name = "item_knn"

    saved = model.saved
    components = tuple(
        replace(c, scorer=Fixed()) if c.name == "item_knn" else c for c in saved.fitted.components
    )  # fmt: skip
    stiff = replace(saved, fitted=replace(saved.fitted, components=components))
    with pytest.raises(DataError, match="component 'item_knn' cannot take new items"):
        updated(stiff, items=[{"item_id": "n", "title": "premium easel"}])


def test_a_mapped_item_comes_before_a_published_layout(model):
    item = model.saved.fitted.items.ids[3]
    frame = pd.DataFrame({"user_id": ["u0"], "parent_asin": ["P"], "sku": [item], "rating": [5], "timestamp": [LATER]})
    assert model.update(frame, columns={"sku": "item_id"}).n_events == 1
    assert model.saved.events.items[-1] == 3
    titled = pd.DataFrame({"sku": [item], "parent_asin": ["P"], "title": ["tent of another name"]})
    report = model.update(items=titled, columns={"sku": "item_id"})
    assert (report.new_items, report.changed_items) == ([], [item])


def test_a_kind_of_event_in_a_list_is_read(model):
    given = event("u0", model.saved.fitted.items.ids[3])
    assert model.update([{**given, "event": ["view"]}]).n_events == 1
    assert model.saved.events.weights[-1] == np.float32(0.2)


@pytest.mark.parametrize("items", [{"item_id": [None]}, {}])
def test_columns_are_mapped_and_searches_kept(model, items):
    frame = pd.DataFrame({"who": ["u0"], **items, "timestamp": [LATER], "query": ["a red tent"]})
    assert model.update(frame, columns={"who": "user_id"}).n_events == 1
    assert model.saved.events.queries[-1] == "a red tent"
    assert model.saved.events.items[-1] == -1
    assert not model.saved.events.positive[-1]
