"""Upstream lists that are kept with a model: for a refit, an export, and until their user or their time is up."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.exporting import exported
from llm_rerank.recommendation.learning import LENT_UPSTREAM
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.privacy import expired, forgotten
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.saving import read_reranker, write_reranker
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import DataError
from tests.recommendation.test_privacy import traces
from tests.recommendation.test_upstream import CONFIG, shown

USER = "u7"
ONLOOKER = "an-onlooker-who-bought-nothing"


def lists_of(shop) -> pd.DataFrame:
    """Lists of many users, and one of somebody who never did anything."""
    lists = shown(shop)
    own = lists[lists["user_id"] == USER]
    return pd.concat([lists, own.assign(user_id=ONLOOKER)], ignore_index=True)


@pytest.fixture(scope="module")
def whole(shop):
    return Reranker(CONFIG, verbose=False).fit(*shop, impressions=lists_of(shop))


@pytest.fixture
def folder(whole, tmp_path):
    whole.save(tmp_path / "shop")
    return tmp_path / "shop"


def frame_of(saved) -> pd.DataFrame:
    frame = saved.impressions.to_frame()
    return frame.assign(item_id=saved.fitted.items.ids[frame["item"]])


def test_lists_come_back_from_disk_as_they_were_given(whole, folder, shop):
    kept = frame_of(Reranker.load(folder, verbose=False).saved)
    given = lists_of(shop).sort_values("timestamp", kind="stable").reset_index(drop=True)
    assert kept["user_id"].tolist() == given["user_id"].tolist()
    assert kept["item_id"].tolist() == given["item_id"].tolist()
    assert kept["time"].tolist() == given["timestamp"].tolist()
    np.testing.assert_allclose(kept["upstream_score"], given["upstream_score"], rtol=1e-6)
    pd.testing.assert_frame_equal(kept, frame_of(whole.saved))
    without = folder.parent / "without"
    whole.save(without, histories=False)
    assert Reranker.load(without, verbose=False).saved.impressions is None
    assert traces(without, ONLOOKER.encode()) == []


def test_folders_of_before_lists_had_numbers_are_read(whole, tmp_path):
    write_reranker(tmp_path, whole.saved)
    arrays, counted = read_arrays(tmp_path / "impressions.safetensors")
    write_arrays(
        tmp_path / "impressions.safetensors", {name: arrays[name] for name in arrays if name != "lists"}, counted
    )
    held = read_reranker(tmp_path).impressions
    assert held.lists is None
    earlier, now = held.to_frame(), whole.saved.impressions.to_frame()
    pd.testing.assert_frame_equal(earlier.drop(columns="list"), now.drop(columns="list"))
    # the same rows are together
    pairs = pd.DataFrame({"earlier": earlier["list"], "now": now["list"]}).drop_duplicates()
    assert len(pairs) == earlier["list"].nunique() == now["list"].nunique() < len(now)
    half = held.take(np.arange(len(now)) % 2 == 0)
    assert half.lists is None and len(half) == (len(now) + 1) // 2


def test_a_refit_uses_the_lists_that_were_kept(folder, shop):
    kept, given = (Reranker.load(folder, verbose=False) for _ in range(2))
    kept.refit()
    given.refit(lists_of(shop))
    stages = [model.saved.fitted.upstream_stage for model in (kept, given)]
    assert stages[0].to_dict() == stages[1].to_dict()
    assert stages[0].profile.unknown_items == 0.0  # a lent stage has no profile; the table named known items alone
    assert LENT_UPSTREAM not in kept.saved.fitted.report["lines"]
    assert len(kept.saved.impressions) == len(given.saved.impressions)
    other = lists_of(shop).iloc[:200]
    given.refit(other)
    assert len(given.saved.impressions) == 200  # in the place of those before


@pytest.mark.parametrize("user", [USER, ONLOOKER])
def test_a_users_lists_are_exported_and_go_with_the_user(whole, folder, shop, user):
    given = lists_of(shop)
    own = given[given["user_id"] == user]
    held = whole.export(user)
    titles = shop[1].set_index("item_id")["title"]
    assert [row["item_id"] for row in held["impressions"]] == own["item_id"].tolist()
    assert [row["title"] for row in held["impressions"]] == titles[own["item_id"]].tolist()
    assert [row["timestamp"] for row in held["impressions"]] == own["timestamp"].tolist()
    assert [row["upstream_score"] for row in held["impressions"]] == pytest.approx(own["upstream_score"].tolist())
    assert traces(folder, user.encode())
    model = Reranker.load(folder, verbose=False)
    report = model.forget([user, "nobody"])
    assert (report.forgotten, report.unknown) == ([user], ["nobody"])
    assert "lists shown by the upstream recommender" in report.rewritten
    assert "stage for upstream lists" in report.influence
    left = frame_of(model.saved)
    assert (
        left["user_id"].tolist()
        == given.sort_values("timestamp", kind="stable").query("user_id != @user")["user_id"].tolist()
    )
    others = left[left["user_id"] == "u8"]
    assert others["item_id"].tolist() == given[given["user_id"] == "u8"]["item_id"].tolist()
    model.save(folder)
    needles = [user.encode()] if user == ONLOOKER else [f'"{user}"'.encode()]
    assert traces(folder, *needles) == []
    with pytest.raises(DataError, match="nothing is held"):
        model.export(user)


def test_when_the_last_one_goes_none_are_kept(whole, tmp_path):
    saved = whole.saved
    saved, _ = forgotten(saved, list(saved.impressions.user_ids))
    assert saved.impressions is None
    Reranker.from_saved(saved).save(tmp_path / "shop")
    assert Reranker.load(tmp_path / "shop", verbose=False).saved.impressions is None


def test_lists_grow_too_old_as_events_do(whole):
    times = whole.saved.impressions.times
    middle = int(np.median(times))
    config = replace(whole.saved.config, retention_days=1.0)
    saved, _ = expired(replace(whole.saved, config=config), now=middle + 86_400)
    assert saved.impressions.times.min() >= middle
    assert len(saved.impressions) == int((times >= middle).sum())
    assert expired(replace(whole.saved, config=config), now=float(times[0]))[0].impressions is whole.saved.impressions


def test_a_fit_keeps_no_list_that_is_too_old(shop):
    events, items = shop
    lists = lists_of(shop)
    middle = int(lists["timestamp"].median())
    days = (time.time() - middle) / 86_400
    config = RerankerConfig(**{**CONFIG.to_dict(), "retention_days": days})
    fitted = Reranker(config, verbose=False).fit(events, items, impressions=lists)
    assert fitted.saved.impressions.times.min() >= middle - 60


def test_a_number_in_the_lists_is_the_text_of_the_events(shop):
    lists = lists_of(shop)
    events, items = shop
    users = {user: str(number) for number, user in enumerate(sorted(set(events["user_id"])))}
    lists = lists[lists["user_id"] != ONLOOKER]
    lists = lists.assign(user_id=lists["user_id"].map(users).astype(int))
    fitted = Reranker(CONFIG, verbose=False).fit(
        events.assign(user_id=events["user_id"].map(users)), items, impressions=lists
    )
    assert set(map(type, fitted.saved.impressions.user_ids)) == {str}
    n_shown = int((lists["user_id"] == int(users[USER])).sum())
    assert len(exported(fitted.saved, users[USER])["impressions"]) == n_shown > 10
    assert fitted.forget([int(users[USER])]).n_events > 0
    assert int(users[USER]) not in {int(user) for user in fitted.saved.impressions.user_ids}


def test_a_live_shop_forgets_an_onlooker_in_every_process_and_in_every_file(folder, whole):
    now = float(whole.saved.events.times.max() + 3600)
    with LiveShop(folder, clock=lambda: now) as live, LiveShop(folder, clock=lambda: now) as other:
        assert len(live.export(ONLOOKER)["impressions"]) > 10
        assert live.forget([ONLOOKER]).forgotten == [ONLOOKER]
        assert other.export(ONLOOKER) is None
        assert live.export(USER)["impressions"]
    assert traces(folder, ONLOOKER.encode()) == []
