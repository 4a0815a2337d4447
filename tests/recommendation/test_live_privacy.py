"""What a live shop holds of a user: all is exported, none kept beyond its time, and what an erasure missed is told."""

import json
import math
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.values import object_array, plain
from llm_rerank.folders import current_name
from llm_rerank.recommendation.impressions import Impressions
from llm_rerank.recommendation.live import LiveShop, UnknownRequest
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.storage import read_arrays, read_frame, read_strings
from llm_rerank.types import Users
from tests.recommendation.test_privacy import traces

ZELDA = "zelda-of-the-lake"
DAY_S = 86_400
READ_BY_THE_SCAN = {
    *("live.sqlite", "live.sqlite-wal"),
    *("user_ids.parquet", "attribute_ids.parquet", "users.parquet", "impression_user_ids.parquet"),
}


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock(fitted):
    return Clock(float(fitted.saved.events.times.max() + 3600))


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "shop")
    return tmp_path / "shop"


def with_attributes_and_lists(saved, now):
    """The state with attributes of a user, and with what an upstream recommender showed her and somebody else."""
    users = Users(object_array([ZELDA]), pd.DataFrame({"user_id": [ZELDA], "city": ["Zwiesel"], "age": [57.0]}))
    shown = Impressions(
        object_array([ZELDA, "someone"]),
        np.array([0, 0, 1], dtype=np.int64),
        np.array([3, 5, 6], dtype=np.int64),
        np.array([now - 70, now - 69, now - 60], dtype=np.int64),
        np.array([0.625, np.nan, 0.5], dtype=np.float32),
    )
    return replace(saved, users=users, impressions=shown)


def leaves(value):
    """All single values of a nested one, as they compare in JSON; None is no value."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    value = plain(value)
    is_nothing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return [] if is_nothing else [float(value) if isinstance(value, int | float) else value]


def decoded(cell):
    try:
        return json.loads(cell)
    except (TypeError, ValueError):
        return cell


def values_in_the_log(live, user):
    """All values of all rows of all tables that name a user, or stand for them by a hash."""
    found = []
    with sqlite3.connect(live.log.path) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in rows.description]
            for row in rows:
                # kind and user say again what stands in the body; number is the order of the rows
                values = [(name, decoded(cell)) for name, cell in zip(columns, row, strict=True)]
                values = leaves([value for name, value in values if name not in ("kind", "user", "number")])
                if user in values:
                    found += values
                elif (digest := live.log.user_digest(user)) in values:  # of the erasure of many, hers
                    found += [value for value in values if value == digest or isinstance(value, float)]
    return found


def values_in_the_model(folder, user):
    """All values that stand beside a user's code in the files of the folder's content."""
    content = folder / current_name(folder)
    ids = {name: [json.loads(text) for text in read_strings(content / f"{name}.parquet")] for name in
           ("item_ids", "user_ids", "attribute_ids", "impression_user_ids")}  # fmt: skip
    arrays, _ = read_arrays(content / "events.safetensors")
    mine = arrays["users"] == ids["user_ids"].index(user)
    found = [ids["item_ids"][code] for code in arrays["items"][mine] if code >= 0]
    for name in ("times", "weights", "positive", "ratings", "quantities", "sentiment", "in_fit"):
        found += arrays[name][mine].tolist()
    for name in ("reviews", "queries"):
        found += np.array(read_strings(content / f"event_{name}.parquet"), dtype=object)[mine].tolist()
    found += read_frame(content / "users.parquet").iloc[ids["attribute_ids"].index(user)].tolist()
    shown, _ = read_arrays(content / "impressions.safetensors")
    mine = shown["users"] == ids["impression_user_ids"].index(user)
    found += [ids["item_ids"][code] for code in shown["items"][mine]]
    found += [*shown["times"][mine].tolist(), *shown["upstream_scores"][mine].tolist()]
    return leaves(found)


def test_the_export_has_every_value_of_the_user_that_a_scan_of_the_files_finds(folder, clock):
    with LiveShop(folder, clock=clock) as live:
        items = live.reranker().saved.fitted.items.ids
        live.record([{"user_id": ZELDA, "item_id": items[0], "event_id": "before she was forgotten"}])
        live.remember_answer("request before", ZELDA, [items[0]])
        live.forget([ZELDA])  # and she comes back
        bought = {"user_id": ZELDA, "item_id": items[7], "event": "purchase", "event_id": "order 4711", "quantity": 3}
        live.record([{**bought, "review": "it hums like a kettle", "rating": 4, "timestamp": clock.now - 100}])
        live.record([{"user_id": ZELDA, "query": "a quieter kettle", "event_id": "search 1"}])
        live.record([{"user_id": "someone", "item_id": items[9], "event_id": "order 5", "review": "mine leaks"}])
        live.remember_answer("request 1", ZELDA, [items[4], items[8]], {"propensities": [0.75, 0.375], "k": 2})
        live.remember_answer("request 2", "someone", [items[9]])
        live.feedback("request 1", [{"item_id": items[8], "event": "click"}])
        live.compact()
        saved = with_attributes_and_lists(Reranker.load(folder, verbose=False).saved, clock.now)
        Reranker.from_saved(saved).save(folder)
        assert live.reload_if_replaced()
        held = json.loads(json.dumps(live.export(ZELDA)))
        assert {name.rpartition("/")[2] for name in traces(folder, ZELDA.encode())} <= READ_BY_THE_SCAN
        in_log, in_model = values_in_the_log(live, ZELDA), values_in_the_model(folder, ZELDA)
        exported = leaves(held)
        assert Counter(in_log) - Counter(exported) == Counter()
        assert Counter(in_model) - Counter(exported) == Counter()
        assert {"order 4711", "search 1", "request 1", "purchase", "click", 2.0, "it hums like a kettle"} <= {*in_log}
        assert {"Zwiesel", 57.0, 0.625, "a quieter kettle", items[3]} <= {*in_model}
        assert not {"mine leaks", "order 5", "request 2", "someone", "request before"} & {*exported}
        assert [erased["user_digest"] for erased in held["erasures"]] == [live.log.user_digest(ZELDA)]
        purchase, _, click = held["event_log"]
        assert {name: purchase[name] for name in bought} == bought
        assert (click["request_id"], click["shown_rank"], click["event"]) == ("request 1", 2, "click")
        assert click["recorded"] == clock.now


def test_what_the_log_alone_holds_is_exported(folder, clock):
    with LiveShop(folder, clock=clock) as live:
        item = live.reranker().saved.fitted.items.ids[0]
        live.record([{"user_id": "a newcomer", "item_id": item, "event_id": "only here"}])
        live.compact()
        elsewhere = Reranker.load(folder, verbose=False)
        elsewhere.forget(["a newcomer"])
        elsewhere.save(folder)  # which does not reach the log
        assert live.reload_if_replaced()
        held = live.export("a newcomer")
        assert "a newcomer" not in set(live.reranker().saved.events.user_ids)
        assert [entry["event_id"] for entry in held["event_log"]] == ["only here"]
        assert live.export("nobody") is None


@pytest.fixture
def short_lived(folder):
    saved = Reranker.load(folder, verbose=False).saved
    Reranker.from_saved(replace(saved, config=replace(saved.config, retention_days=2.0))).save(folder)
    return folder


def test_nothing_is_kept_in_any_file_beyond_its_time(short_lived, clock):
    words = [b"zelda-of-the-lake", b"kettle", b"request 1", b"late-lou", b"order 4711"]
    with LiveShop(short_lived, clock=clock) as live:
        items = live.reranker().saved.fitted.items.ids
        bought = {"user_id": ZELDA, "item_id": items[7], "event": "purchase", "event_id": "order 4711"}
        live.record([{**bought, "review": "it hums like a kettle"}])
        live.remember_answer("request 1", ZELDA, [items[4], items[8]])
        live.feedback("request 1", [{"item_id": items[8], "event": "click"}])
        live.compact()
        assert {word for word in words if traces(short_lived, word)} == {*words} - {b"late-lou"}
        clock.now += 1.9 * DAY_S
        live.compact()
        assert len(live.export(ZELDA)["event_log"]) == 2 and live.shown_lists()
        clock.now += 0.2 * DAY_S
        live.record([{"user_id": "young-yann", "item_id": items[1], "review": "brand new"}])
        # told late: the model drops it for its age, so the log does
        live.record([{"user_id": "late-lou", "item_id": items[1], "timestamp": clock.now - 3 * DAY_S}])
        live.compact()
        assert [word for word in words if traces(short_lived, word)] == []
        assert live.export(ZELDA) is None and live.export("late-lou") is None
        with pytest.raises(UnknownRequest):
            live.feedback("request 1", [{"item_id": items[4]}])
        assert [entry["review"] for entry in live.export("young-yann")["event_log"]] == ["brand new"]
        assert live.record([bought]).duplicates == ["order 4711"]  # known by a hash alone
    with LiveShop(short_lived, clock=clock) as again:
        assert again.export(ZELDA) is None and len(again.export("young-yann")["events"]) == 1


def test_an_erasure_outlasts_a_short_retention_for_a_model_fitted_before(short_lived, clock):
    with LiveShop(short_lived, clock=clock) as live:
        live.forget([ZELDA])
        clock.now += 3 * DAY_S
        live.record([{"user_id": "young-yann", "item_id": live.reranker().saved.fitted.items.ids[1]}])
        live.compact()
        saved = Reranker.load(short_lived, verbose=False).saved  # attributes have no age
        earlier = replace(with_attributes_and_lists(saved, clock.now), log_name="", log_position=0)
        Reranker.from_saved(earlier).save(short_lived)
        assert live.reload_if_replaced()
        assert "Zwiesel" not in json.dumps(live.export(ZELDA))


# ------------------------------------------------------------------ models fitted from files


def files_with(folder, events):
    """Save a model whose files hold these events besides those of the fit, and that knows nothing of a log."""
    reranker = Reranker.load(folder, verbose=False)
    saved = replace(reranker.saved, log_name="", log_position=0)
    reranker = Reranker.from_saved(saved)
    reranker.update(events)
    reranker.save(folder)


def weights_of(live, user):
    events = live.reranker().saved.events
    return sorted(events.weights[events.users == list(events.user_ids).index(user)].round(3).tolist())


def with_kind(user, item, kind, time, **more):
    return {"user_id": user, "item_id": item, "event": kind, "timestamp": int(time), **more}


def test_a_purchase_is_not_taken_for_the_view_of_the_same_second(folder, clock):
    with LiveShop(folder, clock=clock) as live:
        item = live.reranker().saved.fitted.items.ids[2]
        view, purchase = (with_kind("n", item, kind, clock.now - 50) for kind in ("view", "purchase"))
        live.record([view, purchase])
        files_with(folder, [view])
        assert live.reload_if_replaced()
        assert weights_of(live, "n") == pytest.approx([0.2, 1.0])
        files_with(folder, [purchase])  # now they hold both
        assert live.reload_if_replaced()
        assert weights_of(live, "n") == pytest.approx([0.2, 1.0])


def test_of_equal_events_as_many_are_played_as_the_files_lack(folder, clock):
    with LiveShop(folder, clock=clock) as live:
        item = live.reranker().saved.fitted.items.ids[2]
        bought = with_kind("n", item, "purchase", clock.now - 50)
        live.record([{**bought, "quantity": 1}, {**bought, "quantity": 5}, {**bought, "quantity": 2}])
        files_with(folder, [{**bought, "quantity": 5}])
        assert live.reload_if_replaced()
        events = live.reranker().saved.events
        mine = events.users == list(events.user_ids).index("n")
        assert sorted(events.quantities[mine].tolist()) == [1, 2, 5]


def test_files_that_tell_no_kinds_hold_an_event_of_any_kind(folder, fitted, clock):
    events = fitted.saved.events
    plain_events = replace(events, weights=np.ones_like(events.weights))
    Reranker.from_saved(replace(fitted.saved, events=plain_events)).save(folder)
    with LiveShop(folder, clock=clock) as live:
        item = live.reranker().saved.fitted.items.ids[2]
        live.record([with_kind("n", item, "click", clock.now - 50), with_kind("n", item, "click", clock.now - 40)])
        files_with(folder, [{"user_id": "n", "item_id": item, "timestamp": int(clock.now) - 50}])
        assert live.reload_if_replaced()
        assert weights_of(live, "n") == pytest.approx([0.3, 1.0])


def test_ids_that_the_files_spell_otherwise_are_the_same_users(folder, clock):
    with LiveShop(folder, clock=clock) as live:
        item = live.reranker().saved.fitted.items.ids[2]
        live.record([with_kind("4711", item, "purchase", clock.now - 50)])
        files_with(folder, [with_kind(4711, item, "purchase", clock.now - 50)])
        assert live.reload_if_replaced()
        assert weights_of(live, 4711) == pytest.approx([1.0])


def test_a_user_who_came_back_after_an_erasure_keeps_what_the_log_and_the_files_have(folder, clock):
    with LiveShop(folder, clock=clock) as live:
        items = live.reranker().saved.fitted.items.ids
        bought = [with_kind(ZELDA, item, "purchase", clock.now - 50) for item in items[:4]]
        live.forget([ZELDA])
        live.record(bought[:2])
        files_with(folder, bought[1:])
    with LiveShop(folder, clock=clock) as live:  # its own fold outlives the log
        live.compact()
        held = [event["item_id"] for event in live.export(ZELDA)["events"]]
    assert held == items[:2].tolist()  # what only the files have may be of before the erasure


# ------------------------------------------------------------------ what an erasure cannot reach


def test_an_earlier_content_that_cannot_be_removed_is_told_and_goes_next_time(folder, clock, monkeypatch):
    with LiveShop(folder, clock=clock) as live:
        live.record([{"user_id": ZELDA, "item_id": live.reranker().saved.fitted.items.ids[0]}])
        live.compact()
        remove = shutil.rmtree

        def refuse(path, **more):  # as where a file is open on Windows, or the file system is read-only
            if (Path(path) / "manifest.json").exists():
                raise PermissionError(13, "Permission denied", str(path))
            remove(path, **more)

        monkeypatch.setattr(shutil, "rmtree", refuse)
        report = live.forget([ZELDA])
        (left,) = [path for path in folder.iterdir() if traces(path, ZELDA.encode())]
        assert report.forgotten == [ZELDA]
        assert [str(left) in what for what in report.not_reached] == [False, True]
        assert f"{left}, an earlier content, cannot be removed now" in str(report)
        monkeypatch.undo()
        assert live.forget([ZELDA]).not_reached == ()
        assert traces(folder, ZELDA.encode()) == []


def test_a_cache_folder_that_was_not_named_is_told(folder, clock, tmp_path):
    cache = tmp_path / "cache"
    (cache / "fine-tuning").mkdir(parents=True)
    with LiveShop(folder, clock=clock) as live:
        item = live.reranker().saved.fitted.items.ids[0]
        live.record([{"user_id": name, "item_id": item, "review": "it hums"} for name in (ZELDA, "bob", "cyd")])
        assert "not reached: a cache folder of the fit, if there was one" in str(live.forget([ZELDA]))
        assert len(live.forget(["bob"], cache_folder=tmp_path / "elsewhere").not_reached) == 1
        assert live.forget(["nobody"]).not_reached == ()
        report = live.forget(["cyd"], cache_folder=cache)
        assert (report.not_reached, f"the cache folder {cache}" in report.rewritten) == ((), True)
        assert not (cache / "fine-tuning").exists()
