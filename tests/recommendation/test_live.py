"""A shop in use: acknowledged events are in the next answer, on disk, once; erasure, compaction and replacement."""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.item_statistics import ItemStatistics
from llm_rerank.folders import save_folder
from llm_rerank.models.scoring import history_matrix, score_candidates
from llm_rerank.recommendation.event_log import EventLog
from llm_rerank.recommendation.live import LiveShop, UnknownRequest
from llm_rerank.recommendation.live_events import EventError
from llm_rerank.recommendation.live_state import _tables, caught_up
from llm_rerank.recommendation.privacy import forgotten
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec, default_specs
from llm_rerank.recommendation.state import END_OF_TIME
from llm_rerank.recommendation.updating import updated
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import DataError, ReplacedError, StorageError, Users
from tests.data.test_merging import assert_same_statistics
from tests.shops import make_shop


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def now(fitted):
    return float(fitted.saved.events.times.max() + 3600)


@pytest.fixture
def live(folder, now):
    with LiveShop(folder, clock=lambda: now) as live:
        yield live


class SameTheme:
    """A scorer of one's own: how often the history has the candidate's theme."""

    name, depends_on_list = "same_theme", False

    def fit(self, past, items, *, seed):
        self.has = pd.get_dummies(items.frame["theme"]).to_numpy(np.float32)
        return self

    def score_catalogue(self, cases):
        return history_matrix(cases, len(self.has), decay=0.1) @ self.has @ self.has.T

    def score(self, cases):
        return score_candidates(self, cases)

    def save(self, folder):
        write_arrays(folder / "has.safetensors", {"has": self.has})

    @classmethod
    def load(cls, folder):
        scorer = cls()
        scorer.has = read_arrays(folder / "has.safetensors")[0]["has"]
        return scorer


def history_of(reranker, user):
    events = reranker.saved.events
    code = list(events.user_ids).index(user)
    return [reranker.saved.fitted.items.ids[item] for item in events.items[events.users == code]]


def seen_event(live, user, item, **more):
    return live.record([{"user_id": user, "item_id": item, **more}])


def same_state(one, other):
    a, b = one.saved, other.saved
    for name in ("users", "items", "times", "weights", "positive", "ratings", "quantities", "reviews", "queries"):
        np.testing.assert_array_equal(getattr(a.events, name), getattr(b.events, name))
    assert list(a.events.user_ids) == list(b.events.user_ids)
    assert list(a.fitted.items.ids) == list(b.fitted.items.ids)
    users = list(a.events.user_ids[:5])
    np.testing.assert_allclose(
        one.recommend(users, k=20)["score"].to_numpy(float), other.recommend(users, k=20)["score"].to_numpy(float)
    )


def test_a_shop_in_use_keeps_a_scorer_of_ones_own(tmp_path):
    config = RerankerConfig(encoder=None, sequence="off")
    events, items = make_shop(n_users=120)
    usual = ("text_ease", "als", "item_knn")
    specs = [spec for spec in default_specs(len(items), encoder=None) if spec.name in usual]
    specs.append(ComponentSpec("same_theme", "semantic", SameTheme, retrieves=False))
    Reranker(config, components=specs, verbose=False).fit(events, items).save(tmp_path)
    with pytest.raises(StorageError, match="'same_theme' is none of the library's"):
        LiveShop(tmp_path)
    names = [spec.name for spec in specs]
    with LiveShop(tmp_path, components=specs) as live:
        seen_event(live, "newcomer", items["item_id"][3], event="purchase")
        assert [component.name for component in live.reranker().components] == names
        assert [component.name for component in live.refit().components] == names
        Reranker.load(tmp_path, components=specs, verbose=False).refit().save(tmp_path)
        assert live.reload_if_replaced()
        assert [component.name for component in live.reranker().components] == names


def test_an_event_is_in_the_next_answer_and_not_in_an_earlier_snapshot(live):
    before = live.reranker()
    user = before.saved.events.user_ids[0]
    best = before.recommend([user], k=1)["item_id"].iloc[0]
    recorded = seen_event(live, user, best, event="purchase", event_id="e1")
    assert (recorded.accepted, recorded.duplicates) == (["e1"], [])
    assert best not in set(live.reranker().recommend([user], k=10)["item_id"])
    assert history_of(live.reranker(), user)[-1] == best
    assert before.recommend([user], k=1)["item_id"].iloc[0] == best


def test_an_event_id_counts_once_in_a_call_in_two_and_after_a_restart(live, folder, now):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    event = {"user_id": user, "item_id": item, "event_id": "e1"}
    n = len(live.reranker().saved.events)
    assert live.record([event, event]).duplicates == ["e1"]
    assert live.record([event, {**event, "event_id": "e2"}]).accepted == ["e2"]
    live.compact()
    with LiveShop(folder, clock=lambda: now) as again:
        assert again.record([event]) == again.record([event]) != live.record([{**event, "event_id": "e3"}])
        assert len(again.reranker().saved.events) == n + 3


def test_a_weight_that_an_earlier_version_let_in_does_not_stop_the_shop(live, folder, now, monkeypatch):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    with pytest.raises(EventError, match="weight"):
        seen_event(live, user, item, weight=-5_000)
    with monkeypatch.context() as patched:  # as before there was a bound
        for module in ("llm_rerank.recommendation.live_events", "llm_rerank.data.events"):
            patched.setattr(f"{module}.GREATEST_WEIGHT", 1e9)
        seen_event(live, user, item, weight=-5_000)
    with LiveShop(folder, clock=lambda: now) as again:
        events = again.reranker().saved.events
    assert events.weights.min() == -1_000


def test_a_bad_event_takes_none_of_its_neighbours_in(live):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    n = len(live.reranker().saved.events)
    with pytest.raises(EventError, match=r"events\[1\]\.item_id 'no such' is absent"):
        live.record([{"user_id": user, "item_id": item, "event_id": "e1"}, {"user_id": user, "item_id": "no such"}])
    assert len(live.reranker().saved.events) == n and live.log.last_position() == 0
    assert live.record([{"user_id": user, "item_id": item, "event_id": "e1"}]).accepted == ["e1"]


def test_a_time_long_ago_is_seconds_too(live):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    seen_event(live, user, item, timestamp=86_400 * 366)
    assert live.reranker().saved.events.times[0] == 86_400 * 366


def test_what_is_played_again_is_what_was_live(live, folder, now):
    users, items = live.reranker().saved.events.user_ids, live.reranker().saved.fitted.items.ids
    rng = np.random.default_rng(0)
    for number in range(30):
        seen_event(live, users[rng.integers(len(users))], items[rng.integers(len(items))], timestamp=now - number % 7)
    live.add_items([{"item_id": "brand-new", "title": "a brand new thing"}])
    seen_event(live, "a newcomer", "brand-new", event="purchase", review="just right")
    with LiveShop(folder, clock=lambda: now) as again:
        same_state(live.reranker(), again.reranker())
        again.compact()
        assert again.log.last_position() == live.log.last_position()
        same_state(live.reranker(), again.reranker())
    loaded = Reranker.load(folder, verbose=False)
    same_state(loaded, live.reranker())
    assert loaded.saved.log_position == live.log.last_position()
    assert live.reload_if_replaced() and not live.reload_if_replaced()
    same_state(loaded, live.reranker())


def test_another_process_reads_what_this_one_wrote(live, folder):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    script = (
        "import sys, json; from llm_rerank.recommendation.live import LiveShop\n"
        "live = LiveShop(sys.argv[1])\n"
        "def n(): return len(live.reranker().saved.events)\n"
        "print(n(), flush=True)\n"
        "sys.stdin.readline(); print(n(), flush=True)\n"
        "live.record([json.loads(sys.stdin.readline())]); print(n(), flush=True)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    n = int(other.stdout.readline())
    seen_event(live, user, item)
    other.stdin.write("go\n")
    assert int(other.stdout.readline()) == n + 1
    old = int(live.reranker().saved.events.times.max()) - 5
    other.stdin.write(json.dumps({"user_id": user, "item_id": item, "timestamp": old}) + "\n")
    assert int(other.stdout.readline()) == n + 2
    assert len(live.reranker().saved.events) == n + 2
    other.stdin.close()
    assert other.wait(timeout=30) == 0


def test_many_threads_write_and_read(live):
    users, items = live.reranker().saved.events.user_ids, live.reranker().saved.fitted.items.ids
    n, missing = len(live.reranker().saved.events), []

    def work(number):
        for turn in range(10):
            item = items[(number * 10 + turn) % len(items)]
            seen_event(live, users[number], item, event_id=f"{number}-{turn}")
            if history_of(live.reranker(), users[number])[-1] != item:
                missing.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert missing == [] and len(live.reranker().saved.events) == n + 40


def traces(folder: Path, words: list[bytes]) -> list[tuple[str, bytes]]:
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            values = [column.to_pylist() for column in parquet.read_table(path).columns]
            content += b"\n".join(v if isinstance(v, bytes) else str(v).encode() for column in values for v in column)
        found += [(path.name, word) for word in words if word in content]
    return found


def test_a_forgotten_user_is_in_no_file_and_stays_forgotten(live, folder, now):
    item, other = live.reranker().saved.fitted.items.ids[:2]
    words = [b"zelda-of-the-lake", b"hums like a kettle"]
    seen_event(live, "zelda-of-the-lake", item, event="purchase", review="it hums like a kettle at night")
    live.remember_answer("r1", "zelda-of-the-lake", [item])
    live.compact()
    seen_event(live, "zelda-of-the-lake", other, event_id="order of zelda-of-the-lake")
    assert {word for _, word in traces(folder, words)} == set(words)
    assert live.export("zelda-of-the-lake")["lists_shown"][0]["item_ids"] == [item]
    report = live.forget(["zelda-of-the-lake", "nobody"])
    assert (report.forgotten, report.unknown) == (["zelda-of-the-lake"], ["nobody"])
    assert traces(folder, words) == []
    assert live.export("zelda-of-the-lake") is None
    assert "zelda-of-the-lake" not in set(live.reranker().saved.events.user_ids)
    with LiveShop(folder, clock=lambda: now) as again:
        assert "zelda-of-the-lake" not in set(again.reranker().saved.events.user_ids)
        seen_event(again, "zelda-of-the-lake", other)
        assert history_of(again.reranker(), "zelda-of-the-lake") == [other]
    assert history_of(live.reranker(), "zelda-of-the-lake") == [other]


def test_an_erasure_reaches_a_process_that_holds_the_user_and_a_model_fitted_before(live, folder, now, tmp_path):
    user = live.reranker().saved.events.user_ids[5]
    shutil.copytree(folder, tmp_path / "earlier")
    with LiveShop(folder, clock=lambda: now) as other:
        assert user in set(other.reranker().saved.events.user_ids)
        live.forget([user])
        assert user not in set(other.reranker().saved.events.user_ids)
        # a refit that began before comes back with the user in it
        Reranker.load(tmp_path / "earlier", verbose=False).save(folder)
        assert live.reload_if_replaced()
        assert user not in set(live.reranker().saved.events.user_ids)
        live.compact()
    assert user not in set(Reranker.load(folder, verbose=False).saved.events.user_ids)


def test_a_kill_between_erasure_and_the_new_folder_is_made_good_at_the_next_start(live, folder, now):
    user = live.reranker().saved.events.user_ids[5]
    with live.log.writing():  # the first half of forget, then the process dies
        live.log.erase([user], now)
    with LiveShop(folder, clock=lambda: now) as again:
        assert user not in set(again.reranker().saved.events.user_ids)
        assert user not in set(Reranker.load(folder, verbose=False).saved.events.user_ids)
        assert not again.is_behind
        seen_event(again, again.reranker().saved.events.user_ids[0], again.reranker().saved.fitted.items.ids[0])
        assert again.is_behind


def test_a_model_fitted_from_files_is_not_told_twice_what_the_files_held(live, folder, now, shop):
    user, items = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids
    seen_event(live, user, items[2], timestamp=now - 50)
    seen_event(live, user, items[3], timestamp=now - 40)
    without_log = Reranker.load(folder, verbose=False)
    without_log.update([{"user_id": user, "item_id": items[2], "timestamp": int(now) - 50}])
    without_log.save(folder)  # as a nightly fit from an export that ends between the two
    assert live.reload_if_replaced()
    assert history_of(live.reranker(), user)[-2:] == [items[2], items[3]]
    assert len(live.reranker().saved.events) == len(without_log.saved.events) + 1


def test_a_program_that_began_before_an_old_entry_was_folded_loses_nothing(folder, now):
    clock = [now]
    with LiveShop(folder, clock=lambda: clock[0]) as live:
        user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
        seen_event(live, user, item)
        clock[0] += 8 * 86_400
        other = Reranker.load(folder, verbose=False)
        live.compact()
        other.save(folder)
        assert live.reload_if_replaced() and history_of(live.reranker(), user)[-1] == item


def test_compaction_does_not_undo_a_new_model(live, folder, fitted, now):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    seen_event(live, user, item, timestamp=now)
    saved = Reranker.load(folder, verbose=False).saved
    Reranker.from_saved(replace(saved, config=replace(saved.config, min_items=3))).save(folder)
    live.compact()
    loaded = Reranker.load(folder, verbose=False)
    assert loaded.saved.config.min_items == 3 and history_of(loaded, user)[-1] == item


def test_a_model_that_comes_in_while_the_log_is_folded_stays(live, folder, now, monkeypatch):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    seen_event(live, user, item, timestamp=now)
    saved = Reranker.load(folder, verbose=False).saved
    newer = Reranker.from_saved(replace(saved, config=replace(saved.config, min_items=3)))
    folders = []

    def after_another(target, write, **more):  # a fit that ends between our look at the folder and our save
        if not folders:
            newer.save(folder)
        folders.append(target)
        return save_folder(target, write, **more)

    monkeypatch.setattr("llm_rerank.recommendation.live.save_folder", after_another)
    live.compact()
    loaded = Reranker.load(folder, verbose=False)
    assert loaded.saved.config.min_items == 3 and history_of(loaded, user)[-1] == item
    assert len(folders) == 2


def test_a_refit_takes_over_what_came_in_and_does_not_undo_a_table_that_another_program_brought(
    live, folder, now, monkeypatch
):
    saved = live.reranker().saved
    user, gone, items = saved.events.user_ids[0], saved.events.user_ids[5], saved.fitted.items.ids
    fit = Reranker.refit

    def busy(reranker, *given):  # what happens while a fit takes an hour
        fitted = fit(reranker, *given)
        seen_event(live, user, items[3], timestamp=now)
        live.forget([gone])
        return fitted

    monkeypatch.setattr(Reranker, "refit", busy)
    refitted = live.refit()
    assert history_of(refitted, user)[-1] == items[3] and gone not in set(refitted.saved.events.user_ids)
    assert refitted.saved.in_fit.sum() >= len(saved.events) - 60
    loaded = Reranker.load(folder, verbose=False)
    same_state(loaded, refitted)
    assert not live.is_behind

    def with_a_table(reranker, *given):
        fitted = fit(reranker, *given)
        other = Reranker.load(folder, verbose=False)
        other.update([{"user_id": user, "item_id": items[4], "timestamp": now + 1}])
        other.save(folder)
        return fitted

    monkeypatch.setattr(Reranker, "refit", with_a_table)
    with pytest.raises(ReplacedError, match="refit again"):
        live.refit()
    assert history_of(Reranker.load(folder, verbose=False), user)[-1] == items[4]
    assert live.reload_if_replaced() and history_of(live.reranker(), user)[-1] == items[4]


def test_feedback_is_an_event_of_the_request_with_the_rank_that_was_shown(live):
    user, items = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids
    live.remember_answer("r1", user, [items[4], items[7]], {"propensities": [0.5, 0.5], "k": 2})
    first = live.feedback("r1", [{"item_id": items[7], "event": "click"}])
    again = live.feedback("r1", [{"item_id": items[7], "event": "click"}])
    assert again.duplicates == first.accepted and history_of(live.reranker(), user)[-1] == items[7]
    (entry,) = live.log.after(0)
    assert (entry.body["request_id"], entry.body["shown_rank"], entry.body["event"]) == ("r1", 2, "click")
    assert live.shown_lists()[0]["propensities"] == [0.5, 0.5]
    with pytest.raises(UnknownRequest, match="not, or no longer, remembered"):
        live.feedback("r2", [{"item_id": items[7]}])
    with pytest.raises(EventError, match=r"events\[0\]\.item_id"):
        live.feedback("r1", [{"event": "click"}])
    with pytest.raises(EventError, match=r"events\[0\]\.user_id"):
        live.feedback("r1", [{"item_id": items[7], "user_id": user}])
    live.remember_answer("r3", None, [items[4]])
    with pytest.raises(UnknownRequest, match="nobody"):
        live.feedback("r3", [{"item_id": items[4]}])


def test_a_new_item_can_be_recommended_at_once(live):
    report = live.add_items([{"item_id": "new", "title": "something new", "price": 3.0}])
    assert report.new_items == ["new"]
    user = live.reranker().saved.events.user_ids[0]
    result = live.reranker().rerank(pd.DataFrame({"user_id": [user], "item_id": ["new"]}))
    assert np.isfinite(result["score"]).all()
    with pytest.raises(DataError):
        live.add_items([{"title": "no id"}])
    assert live.log.last_position() == 1


def test_texts_of_new_items_are_read_once_while_nobody_else_writes(live, monkeypatch):
    calls = []

    def counted(saved, *given, **more):
        calls.append(len(saved.events))
        return updated(saved, *given, **more)

    monkeypatch.setattr("llm_rerank.recommendation.live.updated", counted)
    live.add_items([{"item_id": "one", "title": "one more thing"}])
    assert len(calls) == 1
    with live.log.writing():
        assert caught_up(live._state, live.log) is live._state


def test_a_folder_without_histories_or_without_a_model_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "bare", histories=False)
    with pytest.raises(DataError, match="without histories"):
        LiveShop(tmp_path / "bare")
    with pytest.raises(StorageError):
        LiveShop(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_log_of_one_shop_is_not_played_on_another_by_position(live, folder, fitted, tmp_path, now):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    seen_event(live, user, item)
    live.compact()
    position = live.log.last_position()
    shutil.copytree(folder, tmp_path / "moved", ignore=shutil.ignore_patterns("live.sqlite*"))
    other = EventLog(tmp_path / "moved" / "live.sqlite")  # another log: its first rows are not the ones the model has
    with other.writing():
        body = {"event_id": "x", "user_id": user, "item_id": item, "timestamp": int(now) + 9}
        other.append("event", [body], [user], now)
    other.close()
    with LiveShop(tmp_path / "moved", clock=lambda: now) as moved:
        assert position >= 1 and len(moved.reranker().saved.events) == len(live.reranker().saved.events) + 1


def test_an_erasure_that_is_played_reaches_users_who_have_attributes_alone(folder, now):
    saved = Reranker.load(folder, verbose=False).saved
    ids = np.array(["silent-sam", 4711], dtype=object)
    users = Users(ids, pd.DataFrame({"user_id": ids, "city": ["Zwiesel", "Ulm"]}))
    Reranker.from_saved(replace(saved, users=users)).save(folder)
    with LiveShop(folder, clock=lambda: now) as live, LiveShop(folder, clock=lambda: now) as other:
        with live.log.writing():  # the first half of forget, then the process dies
            live.log.erase(["silent-sam"], now)
        assert other.export("silent-sam") is None and other.export("4711")["attributes"] == {"city": "Ulm"}
        other.remember_answer("r1", 4711, [])
        other.forget(["4711"])  # as the command line has it
        assert live.export(4711) is None and live.shown_lists() == []
    assert list(Reranker.load(folder, verbose=False).saved.users.ids) == []


def test_a_search_without_an_item_is_an_event(live, folder, now):
    live.record([{"user_id": "a newcomer", "query": " red  tent "}])
    for shop in (live, LiveShop(folder, clock=lambda: now)):
        events = shop.reranker().saved.events
        assert (events.user_ids[events.users[-1]], events.queries[-1], events.items[-1]) == (
            "a newcomer",
            "red tent",
            -1,
        )


def test_users_of_both_kinds_of_id_are_the_same_when_played_again(live, folder, now):
    items = live.reranker().saved.fitted.items.ids
    live.record([{"user_id": "n1", "item_id": items[0]}, {"user_id": 4711, "item_id": items[1]}])
    seen_event(live, 4711, items[2])
    seen_event(live, "n1", items[3])
    with LiveShop(folder, clock=lambda: now) as again:
        same_state(live.reranker(), again.reranker())
        assert history_of(again.reranker(), 4711) == [items[1], items[2]]
        again.forget([4711])
    assert 4711 not in set(live.reranker().saved.events.user_ids)
    assert [entry.body["user_id"] for entry in live.log.after(0) if entry.kind == "event"] == ["n1", "n1"]


def test_a_price_of_an_item_that_a_new_fit_has_not_does_not_stop_the_shop(live, folder, fitted, now):
    live.add_items([{"item_id": "soon gone", "title": "a thing"}])
    live.compact()
    with live.log.writing():  # as a compaction eight days later does
        live.log._connection.execute("DELETE FROM entries")
    known = live.reranker().saved.fitted.items.ids[3]
    live.add_items([{"item_id": "soon gone", "price": 5.0}, {"item_id": known, "price": 7.25}])
    fitted.save(folder)  # from files that lack it
    assert live.reload_if_replaced()
    items = live.reranker().saved.fitted.items
    assert "soon gone" not in set(items.ids) and items.frame["price"].iloc[3] == 7.25
    LiveShop(folder, clock=lambda: now).close()


def test_a_new_fit_knows_its_items_better_than_the_log_of_before(live, folder, fitted, now):
    ids, frame = fitted.saved.fitted.items.ids, fitted.saved.fitted.items.frame
    live.add_items([{"item_id": ids[3], "price": 7.25, "title": "Monday's"}, {"item_id": "new", "title": "Monday's"}])
    live.add_items([{"item_id": "new", "price": 2.0, "title": "Tuesday's"}])
    of_wednesday = Reranker.from_saved(replace(fitted.saved, origin="Wednesday's files, which lack the new one"))
    of_wednesday.save(folder)
    assert live.reload_if_replaced()
    live.add_items([{"item_id": ids[4], "price": 8.5}])
    for shop in (live, LiveShop(folder, clock=lambda: now)):
        known = shop.reranker().saved.fitted.items.frame.set_index("item_id")[["price", "title"]]
        assert known.loc[ids[3]].tolist() == frame[["price", "title"]].iloc[3].tolist()
        assert known.loc["new"].tolist() == [2.0, "Tuesday's"]
        assert known.loc[ids[4], "price"] == 8.5  # said after Wednesday's files came


def test_tables_of_items_are_joined_where_they_read_the_same_as_one():
    a, b, c = ({"item_id": name, "price": 1.5} for name in "abc")
    whole, text, titled = {"item_id": "d", "price": 2}, {"item_id": "e", "price": "1,299"}, {**a, "title": "x"}
    assert _tables([[a], [b, whole], [c]]) == [[a, b, whole, c]]
    assert _tables([[a], [b], [a], [c]]) == [[a, b], [a, c]]  # the later price of a comes after the first
    assert _tables([[text], [{**text, "item_id": "f"}], [a]]) == [[text], [{**text, "item_id": "f"}], [a]]
    assert _tables([[titled], [b], [c, titled], [a]]) == [[titled], [b], [c, titled], [a]]
    assert _tables([[a, a], [b]]) == [[a, a], [b]]
    assert _tables([[{"item_id": 7, "stock": 1}], [{"item_id": 8, "stock": 1.5}]]) == [
        [{"item_id": 7, "stock": 1}],
        [{"item_id": 8, "stock": 1.5}],
    ]


def test_items_that_are_played_together_are_what_they_were_one_by_one(live, folder, now):
    ids = live.reranker().saved.fitted.items.ids
    for place in range(6):
        live.add_items([{"item_id": ids[place], "price": 3 + place / 2 if place % 2 else 4, "stock": place}])
        live.add_items([{"item_id": f"new {place}", "title": f"a new trowel {place}", "brand": f"B{place % 2}"}])
    for place in range(4):
        live.add_items([{"item_id": f"new {place}", "title": f"a newer saddle {place}", "brand": "B9"}])
    with LiveShop(folder, clock=lambda: now) as again:
        one, other = live.reranker().saved, again.reranker().saved
        lists = [reranker.recommend(["u1", "u2"], k=20) for reranker in (live.reranker(), again.reranker())]
        assert lists[0]["item_id"].tolist() == lists[1]["item_id"].tolist()
        np.testing.assert_allclose(lists[0]["score"], lists[1]["score"], atol=1e-5)
        pd.testing.assert_frame_equal(one.fitted.items.frame, other.fitted.items.frame)
        assert one.fitted.items.texts.tolist() == other.fitted.items.texts.tolist()
        assert_same_statistics(one.item_statistics, other.item_statistics)
        anew = ItemStatistics.from_events(one.events, one.fitted.items, END_OF_TIME, sentiment=one.sentiment)
        assert_same_statistics(one.item_statistics, anew)
        np.testing.assert_array_equal(one.item_statistics.brands.of_item.values, anew.brands.of_item.values)
        np.testing.assert_array_equal(one.item_statistics.log_prices, anew.log_prices)


def test_a_price_counts_no_label_anew_and_a_brand_does(fitted):
    before, ids = fitted.saved.item_statistics, fitted.saved.fitted.items.ids
    priced, _ = updated(fitted.saved, None, [{"item_id": ids[3], "price": 7.25}])
    assert priced.item_statistics.log_prices[3] == np.log(7.25)
    assert priced.item_statistics.brands is before.brands
    assert priced.item_statistics.categories is before.categories
    branded, _ = updated(priced, None, [{"item_id": ids[3], "brand": "quite another"}])
    anew = ItemStatistics.from_events(branded.events, branded.fitted.items, END_OF_TIME, sentiment=branded.sentiment)
    np.testing.assert_array_equal(branded.item_statistics.brands.of_item.values, anew.brands.of_item.values)
    assert len(branded.item_statistics.brands.weights) == len(before.brands.weights) + 1


def test_a_spaced_search_counts_once_in_a_model_fitted_from_files(live, folder, now):
    user, item = live.reranker().saved.events.user_ids[0], live.reranker().saved.fitted.items.ids[3]
    seen_event(live, user, item, query=" red  tent ")
    saved = live.reranker().saved
    Reranker.from_saved(replace(saved, log_name="", log_position=0)).save(folder)
    assert live.reload_if_replaced()
    assert len(live.reranker().saved.events) == len(saved.events)


def test_nobody_waits_for_the_dear_part_of_an_erasure(live, folder, now, monkeypatch):
    users, item = live.reranker().saved.events.user_ids, live.reranker().saved.fitted.items.ids[3]
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly(*given):
        begun.set()
        assert may_go_on.wait(30)
        return forgotten(*given)

    monkeypatch.setattr("llm_rerank.recommendation.live.forgotten", slowly)
    erasing = threading.Thread(target=live.forget, args=([users[5]],), daemon=True)
    erasing.start()
    assert begun.wait(30)
    done = threading.Event()

    def meanwhile():
        with LiveShop(folder, clock=lambda: now) as other:
            seen_event(other, users[5], item)
            live.remember_answer("r1", users[5], [item])
            assert history_of(live.reranker(), users[5])[-1] == item
        done.set()

    threading.Thread(target=meanwhile, daemon=True).start()
    assert done.wait(8)
    may_go_on.set()
    erasing.join(30)
    assert users[5] not in set(live.reranker().saved.events.user_ids) and live.shown_lists() == []
    assert [entry.kind for entry in live.log.after(0)] == ["forget"]


def test_an_erasure_is_not_done_while_the_write_ahead_file_has_the_rows(folder, now, monkeypatch):
    monkeypatch.setattr("llm_rerank.recommendation.event_log.WAIT_S", 0.1)
    with LiveShop(folder, clock=lambda: now) as live:
        seen_event(live, "zelda-of-the-lake", live.reranker().saved.fitted.items.ids[3])
        reader = sqlite3.connect(live.log.path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM entries").fetchall()
        with pytest.raises(StorageError, match="write-ahead"):
            live.forget(["zelda-of-the-lake"])
        reader.close()
        live.forget(["zelda-of-the-lake"])
        assert traces(folder, [b"zelda-of-the-lake"]) == []


def test_one_text_is_no_list_of_users(live):
    with pytest.raises(DataError, match="list"):
        live.forget("u1")


def test_old_answers_go_though_nothing_came_in(folder, now):
    times = [now]
    with LiveShop(folder, clock=lambda: times[0]) as live:
        current = (folder / "CURRENT").read_text()
        live.remember_answer("r1", None, [live.reranker().saved.fitted.items.ids[4]])
        times[0] += 6 * 86_400
        live.tidy()
        assert live.log.answer("r1") is not None
        times[0] += 2 * 86_400
        live.tidy()
        assert live.log.answer("r1") is None
        assert (folder / "CURRENT").read_text() == current  # there was nothing to fold
