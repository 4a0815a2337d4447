"""The routes over a fitted shop: lists as the library has them, events that change them, users who are forgotten."""

import json
import time
from contextlib import contextmanager

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.schema import validate_items
from llm_rerank.recommendation.answering import Question, answer_questions
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.service.catalogue import MOST_WORDS, Catalogue
from llm_rerank.service.cohere import document_text, first_version_text, history_of, recency_cosine, relevance_of_logits
from llm_rerank.service.ranking import Asked, item_rows, list_content, remember
from tests.recommendation.test_upstream import shown
from tests.service.asking import counted, serving
from tests.shops import make_shop, with_telling_searches

CSV = {"content-type": "text/csv"}


def ids_of(client) -> list:
    return client.shop.reranker().saved.fitted.items.ids.tolist()


def good(response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()


def refused(response, status: int, field: str | None = None) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.get("field") == field, error
    return error


def same_rows(these: list[dict], those: list[dict]) -> None:
    """Compare lists whose scores may differ by the rounding of a batch of another size."""
    assert [row["item_id"] for row in these] == [row["item_id"] for row in those]
    for this, that in zip(these, those, strict=True):
        assert this.keys() == that.keys()
        for name, value in this.items():
            loosely = isinstance(value, float) or name == "components"
            assert value == (pytest.approx(that[name], rel=1e-4, abs=1e-6) if loosely else that[name]), name


# ------------------------------------------------------------------ lists


def test_newcomers_one_by_one_are_told_from_the_users_of_the_fit(model):
    """One list tells nothing; of the last ones together each answer says that another population has come."""
    with serving(model) as client:
        shifted, n_lists = [], []
        for number in range(60):
            said = good(client.post("/recommend", json={"user_id": f"nobody {number}", "k": 5}))["cut"]["drift"]
            shifted.append(said["shifted"])
            n_lists.append(said["n_cases"])
        assert n_lists == list(range(1, 61))
        assert shifted[0] == []
        assert "users without history" in shifted[-1]
        again = good(client.post("/recommend", json={"user_id": "u4", "k": 5}))["cut"]
        assert again["drift"]["n_cases"] == 61
        assert again["guarantee"] is None


def test_a_list_is_the_librarys_own(reading):
    ids = ids_of(reading)
    candidates = [*ids[10:40], "nowhere"]
    scores = [float(place % 7) if place % 3 else None for place in range(len(candidates))]
    events = [{"item_id": ids[3], "event": "purchase"}, {"event": "search", "query": "garden"}]
    said = good(reading.post("/recommend/rerank", json={
        "user_id": "u4", "events": events, "k": 20, "diversity": 0.0, "least_probability": 0.01,
        "candidates": [{"item_id": c, "upstream_score": s} for c, s in zip(candidates, scores, strict=True)],
    }))  # fmt: skip
    question = Question("u4", candidates, scores, events, k=20, diversity=0.0, least_probability=0.01)
    (answer,) = answer_questions(reading.shop.reranker(), [question])
    assert [item["item_id"] for item in said["items"]] == answer.item_ids
    np.testing.assert_allclose([item["score"] for item in said["items"]], answer.scores, rtol=1e-9)
    np.testing.assert_allclose([item["probability"] for item in said["items"]], answer.probabilities, rtol=1e-6)
    assert [item["kept"] for item in said["items"]] == answer.kept.tolist()
    assert [item["before_rank"] for item in said["items"]] == answer.before_ranks.tolist()
    upstream = dict(zip(candidates, scores, strict=True))
    for item in said["items"]:
        assert item["upstream_score"] == upstream[item["item_id"]]
        assert sum(item["components"].values()) == pytest.approx(item["score"])
    assert said["unknown_items"] == ["nowhere"]
    assert (said["known_user"], said["before"], said["degraded"], said["fallback"]) == (True, "upstream", [], "")
    assert (said["as_of"], said["model_version"]) == (answer.at, reading.shop.version)
    assert said["cut"]["least_probability"] == 0.01


def test_an_unknown_item_comes_last_with_nulls(reading):
    items = good(
        reading.post("/recommend/rerank", json={"user_id": "u4", "candidates": ["nowhere", ids_of(reading)[0]]})
    )
    last = items["items"][-1]
    assert (last["item_id"], last["score"], last["probability"], last["kept"]) == ("nowhere", None, None, False)
    assert last["title"] == ""


def test_recommend_leaves_out_what_was_had_unless_told_otherwise(reading):
    events = reading.shop.reranker().saved.events
    had = set(events.items[(events.users == 4) & events.positive].tolist())
    user, ids = events.user_ids[4], ids_of(reading)
    for exclude in (True, False):
        said = good(reading.post("/recommend", json={"user_id": user, "k": 100, "exclude_seen": exclude}))
        shown = {ids.index(item["item_id"]) for item in said["items"]}
        assert bool(shown & had) is not exclude
        assert [item["rank"] for item in said["items"]] == list(range(1, len(shown) + 1))


def test_a_newcomer_gets_a_list_and_as_of_is_a_date_or_seconds(reading):
    said = good(reading.post("/recommend", json={}))
    assert (len(said["items"]), said["known_user"], said["user_id"]) == (10, False, None)
    dates = [
        good(reading.post("/recommend", json={"as_of": at}))["as_of"] for at in ("2021-01-01T00:00:00Z", 1_609_459_200)
    ]
    assert dates == [1_609_459_200, 1_609_459_200]


def test_an_answer_is_cut_anew_as_if_it_had_been_asked_so(reading):
    ids = ids_of(reading)
    first = good(reading.post("/recommend/rerank", json={"user_id": "u5", "candidates": ids[:50]}))
    settings = {"least_probability": 0.2, "k": 7}
    anew = good(reading.post("/recommend/recut", json={"request_id": first["request_id"], **settings}))
    asked = good(reading.post("/recommend/rerank", json={"user_id": "u5", "candidates": ids[:50], **settings}))
    assert anew["request_id"] == first["request_id"]
    assert anew["cut"].pop("drift") == first["cut"]["drift"]
    assert asked["cut"].pop("drift")["n_cases"] == first["cut"]["drift"]["n_cases"] + 1
    assert {**anew, "request_id": ""} == {**asked, "request_id": ""}
    assert len(anew["items"]) == 7
    refused(reading.post("/recommend/recut", json={"request_id": "never"}), 404, "request_id")


def test_old_answers_cannot_be_cut_and_few_are_kept(reading):
    context = reading.context
    snapshot = context.snapshot()
    (answer,) = answer_questions(snapshot.reranker, [Question("u1")])
    for number in range(context.settings.most_answers + 5):
        context.keep(f"r{number}", answer, snapshot, "u1")
    assert context.kept("r4") is None
    assert context.kept("r5") is not None
    assert len(context._answers) == context.settings.most_answers


def replace_model(folder) -> None:
    """Give a folder a model that another program changed: with one item more."""
    other = Reranker.load(folder, device="cpu", verbose=False)
    other.update(items=[{"item_id": "one-more", "title": "One more"}])
    other.save(folder)


def test_an_answer_of_a_model_that_was_replaced_has_to_be_asked_for_again(client, model):
    first = good(client.post("/recommend", json={"user_id": "u5"}))
    recut = {"request_id": first["request_id"], "k": 3}
    good(client.post("/recommend/recut", json=recut))
    client.shop.compact()  # another folder, and the same model
    good(client.post("/recommend/recut", json=recut))
    replace_model(model)
    assert client.shop.reload_if_replaced()
    error = refused(client.post("/recommend/recut", json=recut), 410, "request_id")
    assert error["code"] == "model_replaced"
    assert first["model_version"] in error["message"]
    assert "ask for the list anew" in error["message"]
    second = good(client.post("/recommend", json={"user_id": "u5"}))
    good(client.post("/recommend/recut", json={"request_id": second["request_id"], "k": 3}))


@pytest.mark.parametrize(("body", "field"), [
    ({"candidates": ["a"], "as_of": "the day after"}, "as_of"),
    ({"candidates": ["a"], "as_of": 1_700_000_000_000}, "as_of"),
    ({"candidates": ["a"], "events": [{"item_id": "nowhere"}]}, "events[0].item_id"),
    ({"candidates": ["a"], "events": [{"event": "search"}]}, "events[0].item_id"),
    ({"candidates": ["a"] * 1_001}, "candidates"),
])  # fmt: skip
def test_a_bad_question_is_told_its_field(reading, body, field):
    refused(reading.post("/recommend/rerank", json={"user_id": "u1", **body}), 422, field)


def test_an_explanation_adds_up_and_is_the_librarys(reading):
    ids = ids_of(reading)
    said = good(reading.post("/explain", json={"user_id": "u6", "item_id": ids[0], "versus": ids[1]}))
    own = reading.shop.reranker().explain("u6", ids[0], versus=ids[1])
    assert said["score"] == pytest.approx(own.score)
    assert sum(part["value"] for part in said["contributions"]) == pytest.approx(said["score"])
    assert sum(said["groups"].values()) == pytest.approx(said["score"])
    assert [effect["item_id"] for effect in said["history"]] == [effect.item_id for effect in own.history]
    assert said["versus"]["difference"] == pytest.approx(said["score"] - said["versus"]["score"])
    assert sum(part["value"] for part in said["versus"]["contributions"]) == pytest.approx(said["versus"]["difference"])
    assert said["text"] == str(own)
    fresh = {"user_id": "u6", "item_id": ids[0], "events": [{"item_id": ids[0], "event": "cart"}]}
    assert good(reading.post("/explain", json=fresh))["score"] != pytest.approx(said["score"])
    refused(reading.post("/explain", json={"user_id": "u6", "item_id": "nowhere"}), 422, "item_id")
    refused(reading.post("/explain", json={"user_id": "u6", "item_id": ids[0], "versus": ids[0]}), 422, "versus")


def test_an_explanation_is_of_the_score_that_a_list_with_upstream_scores_shows(tmp_path):
    events, items = make_shop()
    lists = shown((events, items))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30)
    Reranker(config, verbose=False).fit(events, items, impressions=lists).save(tmp_path / "shop")
    user = lists["user_id"].iloc[0]
    ids = lists.loc[lists["user_id"] == user, "item_id"].tolist()[:4]
    given = [{"item_id": item, "upstream_score": 0.5 - place} for place, item in enumerate(ids[:3])]
    with serving(tmp_path / "shop") as client:
        asked = {"user_id": user, "candidates": [*given, {"item_id": ids[3]}]}
        listed = {row["item_id"]: row for row in good(client.post("/recommend/rerank", json=asked))["items"]}
        why = {"user_id": user, "item_id": ids[0], "versus": ids[3]}
        said = good(client.post("/explain", json={**why, "upstream_scores": [0.5, None]}))
        assert said["score"] == pytest.approx(listed[ids[0]]["score"], abs=1e-5)
        assert said["versus"]["score"] == pytest.approx(listed[ids[3]]["score"], abs=1e-5)
        assert said["probability"] == pytest.approx(listed[ids[0]]["probability"], abs=1e-5)
        assert sum(said["groups"].values()) == pytest.approx(said["score"])
        assert abs(good(client.post("/explain", json=why))["score"] - said["score"]) > 1e-3
        refused(client.post("/explain", json={**why, "upstream_scores": [0.5]}), 422, "upstream_scores")


# ------------------------------------------------------------------ events


def test_an_event_changes_the_next_answer_and_comes_only_once(client):
    ids = ids_of(client)
    question = {"user_id": "u7", "candidates": ids[:30]}
    before = good(client.post("/recommend/rerank", json=question))
    event = {"user_id": "u7", "item_id": ids[0], "event": "purchase", "event_id": "order-1"}
    assert good(client.post("/events", json=event)) == {"accepted": ["order-1"], "duplicates": []}
    after = good(client.post("/recommend/rerank", json=question))
    assert [item["score"] for item in after["items"]] != [item["score"] for item in before["items"]]
    assert good(client.post("/events", json={"events": [event]})) == {"accepted": [], "duplicates": ["order-1"]}
    again = good(client.post("/recommend/rerank", json=question))
    assert [item["score"] for item in again["items"]] == [item["score"] for item in after["items"]]
    history = good(client.get("/users/u7/history"))["events"]
    assert (history[0]["item_id"], history[0]["event_weight"]) == (ids[0], 1.0)
    assert sum(event["item_id"] == ids[0] and event["timestamp"] == history[0]["timestamp"] for event in history) == 1
    assert counted(client, "llm_rerank_events_total", outcome="accepted") == 1
    assert counted(client, "llm_rerank_events_total", outcome="duplicate") == 1


def test_a_search_changes_the_next_list_without_a_language_model(tmp_path):
    """A stranger, of whom the shop knows one phrase: what it names comes forward, and its best seller to the front."""
    events, items = make_shop(n_users=300)
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=40)
    Reranker(config, verbose=False).fit(with_telling_searches(events, items), items).save(tmp_path / "shop")
    with serving(tmp_path / "shop") as client:

        def ranks(**question):
            asked = {"user_id": "a stranger", "candidates": ids_of(client), **question}
            said = good(client.post("/recommend/rerank", json=asked))
            assert said["degraded"] == []
            return [place for place, item in enumerate(said["items"], 1) if item["item_id"].startswith("fis")]

        before, searched = ranks(), ranks(events=[{"query": "fishing rod"}])
        assert searched[0] == 1 < before[0]
        assert np.mean(searched) < np.mean(before) - 10
        good(client.post("/events", json={"user_id": "a stranger", "event": "search", "query": "fishing rod"}))
        assert ranks()[0] == 1  # at the moment of the search, years after the shop's last sale
        assert np.mean(ranks()) < np.mean(before) - 10
        retrieved = good(client.post("/recommend", json={"user_id": "a stranger", "k": 10}))["items"]
        assert [item["item_id"][:3] for item in retrieved].count("fis") >= 9


def test_a_batch_of_events_is_taken_whole_or_not_at_all(client):
    ids = ids_of(client)
    events = [{"user_id": "u8", "item_id": ids[0], "event_id": str(number)} for number in range(3)]
    bad = [
        ({"item_id": "nowhere"}, "item_id"),
        ({"timestamp": time.time() + 3_600}, "timestamp"),
        ({"timestamp": "yesterday-ish"}, "timestamp"),
        ({"timestamp": "now"}, "timestamp"),
        ({"quantity": 0}, "quantity"),
        ({"event": "dreamt"}, "event"),
    ]
    n_before = len(client.shop.reranker().saved.events)
    for change, field in bad:
        spoiled = [*events[:2], {**events[2], **change}]
        error = refused(client.post("/events", json={"events": spoiled}), 422, f"events[2].{field}")
        assert "u8" not in error["message"]
        refused(client.post("/events", json=spoiled[2]), 422, field)
    assert len(client.shop.reranker().saved.events) == n_before
    assert good(client.post("/events", json={"events": events}))["accepted"] == ["0", "1", "2"]


def test_a_kind_of_the_shops_own_is_taken_once_an_update_had_it(client, model):
    item = ids_of(client)[0]
    abo = {"user_id": "u3", "item_id": item, "event": "Abo"}
    error = refused(client.post("/events", json=abo), 422, "event")
    assert error["message"] == (
        "is 'Abo'; it must be one of search, view, click, favourite, cart, rating, purchase, interaction; a kind of "
        "the shop's own is taken once the tables of a fit or of an update had it"
    )
    question = {"user_id": "u3", "events": [{"item_id": item, "event": "Abo"}]}
    refused(client.post("/recommend", json=question), 422, "events[0].event")
    reranker = Reranker.load(model, verbose=False)
    reranker.update([{**abo, "timestamp": int(reranker.saved.events.times[-1])}])
    reranker.save(model)
    assert client.shop.reload_if_replaced()
    shown = good(client.post("/recommend", json=question))
    assert len(good(client.post("/events", json=abo))["accepted"]) == 1
    clicked = {"request_id": shown["request_id"], "item_id": shown["items"][0]["item_id"], "event": " ABO "}
    assert len(good(client.post("/feedback", json=clicked))["accepted"]) == 1
    assert [entry["event"] for entry in client.shop.export("u3")["event_log"]] == ["abo", "abo"]


def test_feedback_takes_user_and_rank_from_the_request(client):
    shown = good(client.post("/recommend", json={"user_id": "u9"}))
    third = shown["items"][2]["item_id"]
    body = {"request_id": shown["request_id"], "item_id": third, "event": "click"}
    assert len(good(client.post("/feedback", json=body))["accepted"]) == 1
    assert len(good(client.post("/feedback", json=body))["duplicates"]) == 1  # the same click, sent again
    assert good(client.get("/users/u9/history"))["events"][0]["item_id"] == third
    refused(client.post("/feedback", json={**body, "request_id": "never"}), 404, "request_id")
    refused(client.post("/feedback", json={**body, "item_id": "nowhere"}), 422, "item_id")


def test_feedback_is_on_an_item_of_the_list_by_somebody(client):
    first, *_, last = ids_of(client)
    shown = good(client.post("/recommend/rerank", json={"user_id": "u9", "candidates": ids_of(client)[:5], "k": 2}))
    body = {"request_id": shown["request_id"], "event": "click"}
    error = refused(client.post("/feedback", json={**body, "item_id": last}), 422, "item_id")
    assert error["message"] == f"{last!r} was not in this answer; post it to /events"
    events = [{"item_id": item, "event": "click"} for item in (first, last)]
    refused(client.post("/feedback", json={"request_id": shown["request_id"], "events": events}),
            422, "events[1].item_id")  # fmt: skip
    # the third candidate can be seen where the answer is cut anew
    anew = good(client.post("/recommend/recut", json={"request_id": shown["request_id"], "k": 3}))["items"]
    assert len(good(client.post("/feedback", json={**body, "item_id": anew[2]["item_id"]}))["accepted"]) == 1
    # of a long list only its start is remembered
    long = good(client.post("/recommend/rerank", json={"user_id": "u9", "candidates": ids_of(client)}))
    client.context._answers.clear()  # as after a while
    on_last = {"request_id": long["request_id"], "event": "click", "item_id": long["items"][-1]["item_id"]}
    assert len(good(client.post("/feedback", json=on_last))["accepted"]) == 1
    nobody = good(client.post("/recommend", json={}))
    on_nobody = {"request_id": nobody["request_id"], "item_id": nobody["items"][0]["item_id"], "event": "click"}
    error = refused(client.post("/feedback", json=on_nobody), 422, "request_id")
    assert "for nobody" in error["message"]
    assert "give user_id when asking" in error["message"]


def test_a_position_far_in_the_future_is_refused_and_lists_can_still_be_explained(tables, tmp_path):
    events, items = tables
    events = events.assign(timestamp=np.argsort(np.argsort(events["timestamp"], kind="stable"), kind="stable"))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, refit=False)
    Reranker(config, verbose=False).fit(events, items).save(tmp_path / "positions")
    with serving(tmp_path / "positions") as client:
        event = {"user_id": "u1", "item_id": ids_of(client)[0]}
        for far in (9007199254740992, len(events) + 200_000):
            refused(client.post("/events", json={**event, "timestamp": far}), 422, "timestamp")
        good(client.post("/events", json={**event, "timestamp": len(events) + 1_000}))
        shown = good(client.post("/recommend", json={"user_id": "u1"}))
        assert shown["as_of"] == len(events) + 1_001
        why = {"user_id": "u1", "item_id": shown["items"][0]["item_id"], "as_of": shown["as_of"]}
        assert good(client.post("/explain", json=why))["score"] == pytest.approx(shown["items"][0]["score"], rel=1e-4)


def test_a_new_item_can_be_found_and_recommended_at_once(client):
    item = {"item_id": 77, "title": "Quartz sundial", "brand": "Hours", "price": 12.5, "theme": "garden"}
    assert good(client.post("/items", json={"items": [item]}))["new_items"] == ["77"]  # as the others: texts
    found = good(client.get("/catalogue", params={"q": "SUNDIAL quar"}))["items"]
    assert found == [{"item_id": "77", "title": "Quartz sundial", "brand": "Hours", "price": 12.5}]
    ranked = good(client.post("/recommend/rerank", json={"user_id": "u1", "candidates": [77, ids_of(client)[0]]}))
    assert ranked["unknown_items"] == []
    assert {item["item_id"]: item["title"] for item in ranked["items"]}[77] == "Quartz sundial"
    good(client.post("/events", json={"user_id": "u1", "item_id": "77"}))


# ------------------------------------------------------------------ users


def test_users_and_their_history_newest_first(reading):
    events = reading.shop.reranker().saved.events
    newest = list(dict.fromkeys(events.user_ids[events.users[::-1]].tolist()))
    assert good(reading.get("/users", params={"limit": 500}))["users"] == newest
    assert good(reading.get("/users"))["users"] == newest[:20]
    history = good(reading.get("/users/u3/history", params={"limit": 4}))["events"]
    code = events.user_ids.tolist().index("u3")
    rows = np.flatnonzero(events.users == code)[::-1][:4]
    assert [event["timestamp"] for event in history] == events.times[rows].tolist()
    assert [event["event_weight"] for event in history] == events.weights[rows].tolist()
    refused(reading.get("/users/nobody/history"), 404, "user_id")
    refused(reading.get("/users/nobody"), 404, "user_id")
    assert refused(reading.get("/users", params={"limit": 0}), 422, "limit")["message"].startswith("is 0; it should be")


def test_ids_may_hold_slashes_and_numbers_stand_for_their_digits(client):
    item = ids_of(client)[0]
    for user in ("a/b c?%", 41):
        good(client.post("/events", json={"user_id": user, "item_id": item}))
    assert good(client.get("/users/a%2Fb%20c%3F%25"))["user_id"] == "a/b c?%"
    assert len(good(client.get("/users/a%2Fb%20c%3F%25/history"))["events"]) == 1
    assert str(good(client.get("/users/41"))["user_id"]) == "41"
    good(client.delete("/users/41"))
    refused(client.get("/users/41"), 404, "user_id")


def test_a_user_who_is_forgotten_is_nowhere(client, model):
    item = ids_of(client)[0]
    good(client.post("/events", json={"user_id": "mallory-9", "item_id": item, "review": "a zebra of a trowel"}))
    shown = good(client.post("/recommend", json={"user_id": "mallory-9"}))
    held = good(client.get("/users/mallory-9"))
    assert [event["review"] for event in held["events"]] == ["a zebra of a trowel"]
    assert [one["request_id"] for one in held["lists_shown"]] == [shown["request_id"]]
    report = good(client.delete("/users/mallory-9"))
    assert report["forgotten"] == ["mallory-9"]
    assert report["influence"] == []  # nothing was learned from them
    refused(client.get("/users/mallory-9"), 404, "user_id")
    refused(client.post("/recommend/recut", json={"request_id": shown["request_id"]}), 404, "request_id")
    refused(client.post("/feedback", json={"request_id": shown["request_id"], "item_id": item, "event": "click"}),
            404, "request_id")  # fmt: skip
    assert "mallory-9" not in good(client.get("/users", params={"limit": 1000}))["users"]
    for path in model.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"mallory-9" not in content, path
        assert b"zebra" not in content, path
    assert good(client.delete("/users/mallory-9"))["forgotten"] == []
    of_the_fit = good(client.delete("/users/u12"))
    assert (of_the_fit["forgotten"], "als" in of_the_fit["influence"], "refit" in of_the_fit["text"]) == (
        ["u12"],
        True,
        True,
    )
    assert counted(client, "llm_rerank_forgotten_users_total") == 2


def test_a_cache_of_the_fit_is_emptied_or_it_is_told_that_it_was_not(client, model, tmp_path):
    event = {"user_id": "mallory-9", "item_id": ids_of(client)[0], "review": "a zebra of a trowel"}
    good(client.post("/events", json=event))
    report = good(client.delete("/users/mallory-9"))
    assert len(report["not_reached"]) == 1
    assert "not reached: a cache folder of the fit, if there was one" in report["text"]
    cache = tmp_path / "cache"
    (cache / "fine-tuning").mkdir(parents=True)
    with serving(model, cache_folder=cache) as told:
        good(told.post("/events", json=event))
        report = good(told.delete("/users/mallory-9"))
        assert report["not_reached"] == []
        assert f"the cache folder {cache}" in report["rewritten"]
        assert not (cache / "fine-tuning").exists()


def test_the_export_has_the_logs_entries_and_the_kind_of_event(client):
    item = ids_of(client)[0]
    good(client.post("/events", json={"user_id": "u8", "item_id": item, "event": "purchase", "event_id": "order 1"}))
    shown = good(client.post("/recommend", json={"user_id": "u8"}))
    clicked = {"request_id": shown["request_id"], "item_id": shown["items"][1]["item_id"], "event": "click"}
    good(client.post("/feedback", json=clicked))
    bought, click = good(client.get("/users/u8"))["event_log"]
    assert (bought["event_id"], bought["event"]) == ("order 1", "purchase")
    assert (click["request_id"], click["shown_rank"], click["event"]) == (shown["request_id"], 2, "click")


def test_answers_kept_under_a_number_are_forgotten_by_its_digits(client):
    shown = good(client.post("/recommend", json={"user_id": 123456}))  # of whom nothing is known
    assert [one["request_id"] for one in good(client.get("/users/123456"))["lists_shown"]] == [shown["request_id"]]
    good(client.delete("/users/123456"))
    refused(client.post("/recommend/recut", json={"request_id": shown["request_id"]}), 404, "request_id")
    refused(client.get("/users/123456"), 404, "user_id")


def test_a_list_that_is_only_looked_at_can_be_cut_anew_and_is_not_kept_on_disk(client):
    for path, body in (("/recommend", {}), ("/recommend/rerank", {"candidates": ids_of(client)[:5]})):
        shown = good(client.post(path, json={"user_id": "u3", "remember": False, **body}))
        good(client.post("/recommend/recut", json={"request_id": shown["request_id"]}))
        assert good(client.get("/users/u3"))["lists_shown"] == []
        kept = good(client.post(path, json={"user_id": "u4", **body}))
        assert good(client.get("/users/u4"))["lists_shown"][-1]["request_id"] == kept["request_id"]


def test_an_answer_that_is_made_while_its_user_is_forgotten_is_kept_nowhere(client):
    asked = Asked(Question("u6"), "r-of-u6")
    snapshot = client.context.snapshot()
    (answer,) = answer_questions(snapshot.reranker, [asked.question])
    good(client.delete("/users/u6"))
    content = list_content(answer, snapshot, asked.request_id, "u6")
    remember(client.context, snapshot, asked, answer, content)
    assert client.context.kept(asked.request_id) is None
    assert client.shop.shown_lists() == []
    refused(client.get("/users/u6"), 404, "user_id")


def test_answers_of_a_user_whom_another_process_erased_are_gone_here_too(client, model):
    shown, of_other = (good(client.post("/recommend", json={"user_id": user})) for user in ("u6", "u7"))
    snapshot = client.context.snapshot()
    (answer,) = answer_questions(snapshot.reranker, [Question("u6")])
    with LiveShop(model, device="cpu") as elsewhere:
        elsewhere.forget(["u6"])
    refused(client.post("/recommend/recut", json={"request_id": shown["request_id"]}), 404, "request_id")
    good(client.post("/recommend/recut", json={"request_id": of_other["request_id"]}))
    client.context.keep("made before, kept after", answer, snapshot, "u6")
    assert client.context.kept("made before, kept after") is None
    back = good(client.post("/recommend", json={"user_id": "u6"}))  # a newcomer of the same name
    assert not back["known_user"]
    good(client.post("/recommend/recut", json={"request_id": back["request_id"]}))


def test_they_are_gone_though_nobody_asks(model):
    with serving(model, reload_every_s=0.05) as client:
        shown = good(client.post("/recommend", json={"user_id": 77777}))  # of whom the log knows an answer alone
        assert client.context.kept(shown["request_id"]) is not None
        with LiveShop(model, device="cpu") as elsewhere:
            elsewhere.forget(["77777"])
        ends = time.monotonic() + 20
        while client.context.kept(shown["request_id"]) is not None:
            assert time.monotonic() < ends
            time.sleep(0.02)


def test_an_answer_kept_under_a_number_goes_with_the_user_who_came_to_be_known_by_its_digits(client):
    shown = good(client.post("/recommend", json={"user_id": 654321}))
    good(client.post("/events", json={"user_id": "654321", "item_id": ids_of(client)[0]}))
    assert [one["request_id"] for one in good(client.get("/users/654321"))["lists_shown"]] == [shown["request_id"]]
    assert good(client.delete("/users/654321"))["forgotten"] == ["654321"]
    assert client.shop.shown_lists() == []


# ------------------------------------------------------------------ search and previews


def test_the_search_puts_more_words_first_then_whole_words_then_short_titles():
    titles = ["Pumpkin pie", "Bike pump", "Pump", "Pumps for a bike", "Tea", "自行车 打气筒", "Café pump BIKE"]
    items = validate_items({"item_id": list(range(7)), "title": titles, "brand": ["", "", "", "", "Pumpworks", "", ""]})
    catalogue = Catalogue(items)
    assert catalogue.search("pump", 10).tolist() == [2, 1, 6, 4, 0, 3]
    assert catalogue.search("bike PUMP", 10).tolist() == [1, 6, 3, 2, 4, 0]
    assert catalogue.search("打气", 10).tolist() == [5]
    assert catalogue.search("CAFÉ", 10).tolist() == [6]
    assert catalogue.search("pump", 2).tolist() == [2, 1]
    assert catalogue.search("?!", 3).tolist() == [0, 1, 2]


def test_of_a_long_search_the_first_words_count():
    catalogue = Catalogue(validate_items({"item_id": ["a", "b"], "title": ["lamp", "table"]}))
    fill = [f"w{number}" for number in range(MOST_WORDS - 1)]
    assert catalogue.search(" ".join([*fill, "lamp", "table"]), 5).tolist() == [0]
    assert catalogue.search(" ".join([*fill[1:], "lamp", "table"]), 5).tolist() == [0, 1]


def test_the_search_ranks_by_words_found(reading):
    titles = [item["title"] for item in good(reading.get("/catalogue", params={"q": "bike pump", "limit": 5}))["items"]]
    assert titles[:2] == ["classic bike pump", "premium bike pump"]
    assert all("bike" in title or "pump" in title for title in titles[2:])
    assert good(reading.get("/catalogue", params={"q": "premium bike pum"}))["items"][0]["title"] == "premium bike pump"
    assert good(reading.get("/catalogue", params={"q": "xyzzy"}))["items"] == []
    assert len(good(reading.get("/catalogue"))["items"]) == 20


def test_a_table_of_candidates_is_ranked_as_the_route_would(reading):
    ids = ids_of(reading)
    rows = "".join(f"u{user};{item};{place}\n" for user in range(1, 8) for place, item in enumerate(ids[:12]))
    said = good(reading.post("/preview", content=f"user_id;item_id;upstream_score\n{rows}", headers=CSV))
    assert (said["kind"], said["users"]) == ("candidates", ["u1", "u2", "u3", "u4", "u5"])
    assert "7 users; the first 5 are shown" in said["notes"]
    candidates = [{"item_id": item, "upstream_score": place} for place, item in enumerate(ids[:12])]
    own = good(reading.post("/recommend/rerank", json={"user_id": "u2", "candidates": candidates}))
    same_rows(said["lists"][1]["items"], own["items"])


def test_a_table_of_events_gives_lists_for_newcomers_with_these_events(reading):
    ids = ids_of(reading)
    rows = [f"x,{ids[3]},2021-05-01,purchase", "x,nowhere,2021-05-02,view", f"y,{ids[50]},2021-06-01,"]
    table = "\n".join(["user_id,item_id,timestamp,event", *rows])
    said = good(reading.post("/preview", content=table, headers=CSV))
    assert (said["kind"], said["users"]) == ("events", ["x", "y"])
    assert "dropped 1 rows: item is absent from the catalogue" in said["notes"]
    event = {"item_id": ids[3], "timestamp": 1_619_827_200, "event": "purchase"}
    snapshot = reading.context.snapshot()
    (answer,) = answer_questions(snapshot.reranker, [Question(None, events=[event], k=10)])
    same_rows(said["lists"][0]["items"], item_rows(answer, snapshot.catalogue))
    assert "x" not in good(reading.get("/users", params={"limit": 1000}))["users"]
    # what the shop knows of a user of this name is not read
    again = good(reading.post("/preview", content=table.replace("x,", "u2,"), headers=CSV))
    same_rows(again["lists"][0]["items"], said["lists"][0]["items"])


def test_a_table_of_searches_needs_no_column_of_items(reading):
    said = good(reading.post("/preview", content="user_id,timestamp,query\nx,2021-05-01,bike pump", headers=CSV))
    event = {"timestamp": 1_619_827_200, "query": "bike pump"}
    snapshot = reading.context.snapshot()
    (answer,) = answer_questions(snapshot.reranker, [Question(None, events=[event], k=10)])
    same_rows(said["lists"][0]["items"], item_rows(answer, snapshot.catalogue))


@pytest.mark.parametrize(("content", "status"), [
    (b"", 422), (b"\n\n", 422), (b"user_id,item_id\n", 422), (b"1,2\n3,4\n", 422), (b"a,b\n1,2\n", 422),
    (b"user_id,item_id,timestamp\nu,i,never\n", 422), (b"user_id,item_id,timestamp\nu,nowhere,2021-01-01\n", 422),
    (b"user_id,item_id\n\xff\xfe\n", 422), (b"\x1f\x8b\x08", 415), (b"PAR1", 415), (b'{"a": 1}', 415),
    (b"user_id,item_id,upstream_score\nu,i,many\n", 422), (b"user_id,user_id\n1,2\n", 422),
    (b'user_id,item_id\n"u,1\n', 422), (b"user_id,item_id\n" + b"u,i\n" * 50_001, 422),
    (b"user_id," + b"x" * 140_000, 422),
])  # fmt: skip
def test_a_table_that_is_none_is_told_so(reading, content, status):
    response = reading.post("/preview", content=content, headers=CSV)
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert "/tmp" not in message
    assert "llm-rerank-" not in message


def test_a_table_without_a_column_is_told_which_to_rename(reading):
    for head, remedy in (("user_id,sku", "rename 'sku' to 'item_id'"), ("user_id,thing", "rename one to 'item_id'")):
        answer = reading.post("/preview", content=f"{head}\n1,2\n", headers={"content-type": "text/csv"})
        message = refused(answer, 422)["message"]
        assert message.endswith(f"it has {head.replace(',', ', ')}; {remedy}")


def test_a_table_with_a_cell_of_any_length_is_looked_at(reading):
    known, endless = ids_of(reading)[0], "x" * 140_000
    said = good(reading.post("/preview", content=f"user_id,item_id\nu1,{endless}\nu1,{known}\n", headers=CSV))
    assert [item["item_id"] for item in said["lists"][0]["items"]] == [known, endless]


# ------------------------------------------------------------------ Cohere's arithmetic


def test_recency_cosine_by_hand():
    history = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)  # the second is the newest
    documents = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    # weights e^-0.2 and 1: user = (0.818731, 1), length 1.292409
    np.testing.assert_allclose(recency_cosine(history, documents), [1 / 1.292409, 0.818731 / 1.292409, 0], rtol=1e-5)
    np.testing.assert_array_equal(recency_cosine(np.zeros((1, 2), np.float32), documents), [0, 0, 0])


def test_relevance_rises_with_the_score_and_stays_within_bounds():
    relevance = relevance_of_logits(np.array([-1e4, -3.0, 0.0, 1e-6, 3.0, 1e4], dtype=np.float32))
    assert (np.diff(relevance) > 0).all()
    assert relevance[2] == 0.5
    assert relevance.min() >= 0
    assert relevance.max() <= 1


def test_documents_and_queries_as_text():
    assert document_text({"title": "Tea", "price": 3, "note": None, "none": ""}) == "title: Tea\nprice: 3"
    assert document_text({"text": "Tea"}) == "Tea"
    tea = {"title": "Tea", "text": "Black tea", "price": 3}
    assert first_version_text(tea, None) == "Black tea"
    assert first_version_text(tea, ["text"]) == "Black tea"
    assert first_version_text(tea, ["price", "absent", "title"]) == "price: 3\ntitle: Tea"
    assert first_version_text({"title": "Tea", "text": ""}, None) == "title: Tea"
    assert first_version_text("Tea", ["title"]) == "Tea"
    assert history_of("first\n\n second \r\nthird\n") == ["first", "second", "third"]
    assert history_of("\n".join(map(str, range(60)))) == [str(number) for number in range(10, 60)]


# ------------------------------------------------------------------ a shop whose ids are numbers


@contextmanager
def numbered_shop(tables, folder, first_item, first_user=0):
    events, items = tables
    codes = {item: first_item + code for code, item in enumerate(items["item_id"])}
    users = first_user + events["user_id"].str[1:].astype(int)
    events = events.assign(user_id=users, item_id=events["item_id"].map(codes))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, refit=False)
    fitted = Reranker(config, verbose=False).fit(events, items.assign(item_id=items["item_id"].map(codes)))
    fitted.save(folder)
    with serving(folder) as client:
        yield client


@pytest.fixture
def numbered(tables, tmp_path):
    with numbered_shop(tables, tmp_path / "numbered", 100) as client:
        yield client


def test_a_number_in_a_path_or_as_text_is_the_shops_number(numbered):
    assert good(numbered.get("/users/7"))["user_id"] == 7
    number = good(numbered.post("/recommend/rerank", json={"user_id": 7, "candidates": [100, 101, 102]}))
    text = good(numbered.post("/recommend/rerank", json={"user_id": "7", "candidates": ["100", "101", "102"]}))
    assert [item["score"] for item in number["items"]] == [item["score"] for item in text["items"]]
    assert (text["known_user"], text["unknown_items"]) == (True, [])
    own = good(numbered.post("/recommend", json={"user_id": 7}))["items"]
    assert all(isinstance(item["item_id"], int) for item in own)
    assert len(good(numbered.get("/users/7"))["lists_shown"]) == 3
    assert good(numbered.delete("/users/7"))["forgotten"] == [7]
    # the list that was asked for with the text went with the number's
    refused(numbered.post("/recommend/recut", json={"request_id": text["request_id"]}), 404, "request_id")
    body = {"request_id": text["request_id"], "item_id": 100, "event": "click"}
    refused(numbered.post("/feedback", json=body), 404, "request_id")
    refused(numbered.get("/users/7"), 404, "user_id")


def as_javascript(response) -> dict:
    """Read an answer as JavaScript does: every number is a float64."""
    assert response.status_code == 200, response.text
    return json.loads(response.text, parse_int=lambda digits: int(float(digits)))


def test_ids_that_javascript_would_round_go_out_as_texts_and_come_back_as_either(tables, tmp_path):
    first_item, first_user = 2**60 + 1, 2**53 - 3  # users on both sides of what JavaScript holds
    with numbered_shop(tables, tmp_path / "large", first_item, first_user) as client:
        user, items = first_user + 7, [first_item + code for code in range(6)]
        listed = as_javascript(client.post("/recommend/rerank", json={"user_id": user, "candidates": items}))
        assert listed["user_id"] == str(user)
        assert {item["item_id"] for item in listed["items"]} == {str(item) for item in items}
        back = {"user_id": listed["user_id"], "candidates": [item["item_id"] for item in listed["items"]]}
        again = as_javascript(client.post("/recommend/rerank", json=back))
        assert [item["score"] for item in again["items"]] == [item["score"] for item in listed["items"]]
        assert (again["known_user"], again["unknown_items"]) == (True, [])
        # an event under either form is the same user's and the same item's
        for form in (int, str):
            event = {"user_id": form(user), "item_id": form(items[0]), "event": "view"}
            assert len(as_javascript(client.post("/events", json=event))["accepted"]) == 1
        history = as_javascript(client.get(f"/users/{user}/history"))["events"]
        assert [event["item_id"] for event in history[:2]] == [str(items[0])] * 2
        said = as_javascript(client.post("/explain", json={"user_id": str(user), "item_id": items[1]}))
        assert (said["user_id"], said["item_id"]) == (str(user), str(items[1]))
        shown = {"request_id": listed["request_id"], "item_id": listed["items"][0]["item_id"], "event": "click"}
        assert len(as_javascript(client.post("/feedback", json=shown))["accepted"]) == 1
        known = client.get("/users", params={"limit": 1_000}).json()["users"]
        assert set(known) >= {first_user + 1, first_user + 2, str(first_user + 3), str(user)}
        assert client.shop.shown_lists()[0]["item_ids"][0] == int(listed["items"][0]["item_id"])  # on disk as they are
        for n_events in (1, 300):  # read one by one, and as a frame
            fresh = 2**62 + n_events  # somebody nobody knows, and a search beside items
            events = [{"user_id": fresh, "item_id": items[2]}] * n_events + [{"user_id": fresh, "query": "garden"}]
            as_javascript(client.post("/events", json={"events": events}))
            held = as_javascript(client.get(f"/users/{fresh}"))
            assert held["user_id"] == str(fresh)
            assert [event["item_id"] for event in held["events"]] == [str(items[2])] * n_events + [None]
        assert as_javascript(client.delete(f"/users/{user}"))["forgotten"] == [str(user)]
        assert client.get(f"/users/{user}").status_code == 404
        assert client.get(f"/users/{user + 1}").status_code == 200
        error = refused(client.post("/recommend", json={"user_id": 2**63}), 422, "user_id")
        assert "below 2^63" in error["message"]
