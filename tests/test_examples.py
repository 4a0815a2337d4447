"""The examples on made-up data whose right answers are known; what they print on real data is in docs/coverage.md."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import own_lists as benchmarks_own_lists
from examples import advertising, content, friends, neural, own_lists, stock_selection
from llm_rerank.data.datasets import Dataset
from llm_rerank.evaluation.protocols import TimeCut, hold_out
from llm_rerank.types import Ragged
from tests.shops import make_shop

DAY = 86_400


@pytest.fixture(scope="module")
def shop() -> Dataset:
    events, items = make_shop(n_users=500)
    return Dataset("sample", events, items, None, [])


# ----------------------------------------------------------------- stock


def test_demand_is_set_against_what_was_bought_for_the_first_time(shop):
    table = stock_selection.forecast(shop)
    at = hold_out(shop, TimeCut(), "validation").at
    bought = shop.interactions[shop.interactions["event"] == "purchase"].sort_values("timestamp")
    first = bought.drop_duplicates(["user_id", "item_id"])
    after = first[(first["timestamp"] >= at) & (first["timestamp"] < at + 28 * DAY)]
    pd.testing.assert_series_equal(
        table["bought"],
        after.groupby("item_id").size().reindex(table.index, fill_value=0),
        check_dtype=False,
        check_names=False,
    )
    assert table["recent"].sum() == len(first[(first["timestamp"] >= at - 28 * DAY) & (first["timestamp"] < at)])
    assert table["demand"].sum() == pytest.approx(table["recent"].sum())
    # what is in fashion moves on from noun to noun: both look back, and both see most of it
    assert stock_selection.agreement(table, "demand")[0] > 0.5
    gain, low, high = stock_selection.difference(table)
    assert low <= gain <= high


def test_agreement_by_hand():
    table = pd.DataFrame({"bought": [3.0, 2.0, 1.0, 0.0], "right": [9, 5, 4, 1], "wrong": [0, 1, 2, 3]})
    assert stock_selection.agreement(table, "right") == pytest.approx((1.0, 1.0))
    assert stock_selection.agreement(table, "wrong")[0] == pytest.approx(-1.0)


# ------------------------------------------------------------- own lists


def test_a_list_shows_what_sold_best_in_the_four_weeks_before_its_day(shop):
    events = shop.interactions
    lists = own_lists.lists_shown(events, last_days=10)
    bought = events[events["event"] == "purchase"]
    days = pd.to_datetime(bought["timestamp"], unit="s").dt.normalize()
    (user, day), shown = next(iter(lists.groupby(["user_id", "timestamp"])))
    assert (days[bought["user_id"] == user] == day).any()
    before = bought["item_id"][(days < day) & (days >= day - pd.Timedelta(days=28))]
    sold = before.value_counts()
    assert shown["upstream_score"].tolist() == sorted(sold, reverse=True)[: own_lists.N_SHOWN]
    assert (sold[shown["item_id"]].to_numpy() == shown["upstream_score"]).all()
    dated = own_lists.lists_shown(events.assign(timestamp=pd.to_datetime(events["timestamp"], unit="s")), last_days=10)
    pd.testing.assert_frame_equal(dated, lists, check_dtype=False)


def test_the_lists_of_most_of_the_bundled_shop_are_ordered_better(smaller_sample, tmp_path):
    out = tmp_path / "report.json"
    report = benchmarks_own_lists.main([*smaller_sample, "--encoder", "none", "--out", str(out)])
    assert json.loads(out.read_text())["test"] == report["test"]
    assert report["n_lists"] > report["n_cases"] > 100 and report["n_candidates"] == own_lists.N_SHOWN
    assert report["test"]["ci95"][0] > 0


# --------------------------------------------------------------- friends


def circles(n_circles: int = 12, size: int = 14, seed: int = 0) -> Dataset:
    """Circles in which most are friends of each other; each circle plays its own artists."""
    rng = np.random.default_rng(seed)
    pairs, plays = [], []
    for circle in range(n_circles):
        members = range(circle * size, (circle + 1) * size)
        pairs += [(a, b) for a in members for b in members if a < b and rng.random() < 0.7]
        plays += [(member, 10 * circle + artist, 5 + artist) for member in members for artist in range(4)]
    listens = pd.DataFrame(plays, columns=["user_id", "item_id", "plays"])
    artists = pd.DataFrame({"item_id": range(10 * n_circles), "title": [f"band {n}" for n in range(10 * n_circles)]})
    named = pd.DataFrame(pairs, columns=["user_id", "friend_id"])
    return Dataset("lastfm_friends", listens, artists, None, [], {"friends": named})


def test_lost_friends_are_found_and_nobody_is_their_own_friend():
    dataset = circles()
    people, everyone = friends.friendships(dataset)
    assert (everyone == everyone.T).all() and not everyone.diagonal().any()
    lost = friends.held_out(everyone)
    assert (lost == lost.T).all() and not (lost & ~everyone).any()
    assert 0.05 < lost.sum() / everyone.sum() < 0.15
    known = everyone & ~lost
    table = friends.people_table(dataset, people)
    assert table["description"][0] == "band 3, band 2, band 1, band 0"  # most played first
    reranker = friends.fitted(table, known)
    rows = np.flatnonzero(lost.any(axis=1))
    shown = friends.suggestions(reranker, people[rows].tolist())
    pairs = people.get_indexer(shown["user_id"]), people.get_indexer(shown["item_id"])
    assert not (pairs[0] == pairs[1]).any() and not known[pairs].any()
    assert (shown.groupby("user_id")["rank"].agg(list).map(lambda ranks: ranks == list(range(1, 11)))).all()
    # of 14 in a circle about 4 are left to suggest, the lost ones among them
    assert lost[pairs].sum() > 0.9 * lost[rows].sum()


def test_the_baselines_leave_out_oneself_and_friends():
    known = np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    ranked = friends.best(np.array([[9.0, 8, 1, 2]] * 4), known, np.array([0, 1]))
    assert isinstance(ranked, Ragged)
    assert ranked[0].tolist()[:2] == [3, 2] and ranked[1].tolist()[:1] == [3]


# --------------------------------------------------------------- content


def test_a_search_stands_before_the_artist_whose_word_it_is():
    listens = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [10, 11, 10], "timestamp": [5, 3, 4]})
    taggings = pd.DataFrame({"user_id": [1, 2, 2], "item_id": [10, 10, 12], "tag": ["dub", "ska", "soul"]})
    events = content.events_with_searches(listens, taggings).sort_values("timestamp")
    seen = list(events[["user_id", "event", "query"]].fillna("").itertuples(index=False, name=None))
    assert seen == [
        (1, "interaction", ""),
        (2, "search", "ska"),
        (2, "interaction", ""),
        (1, "search", "dub"),
        (1, "interaction", ""),
    ]


def test_what_is_asked_about_a_stranger_holds_none_of_the_answers():
    listens = pd.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [10, 11, 12, 10], "timestamp": [0, 1, 2, 3]})
    taggings = pd.DataFrame({"user_id": [1, 1], "item_id": [10, 11], "tag": ["dub", "dub"]})
    wanted = content.asked(taggings)
    assert sorted(wanted["item_id"]) == [10, 11]
    asked = content.questions(listens, wanted)
    assert asked["what else they listen to"]["item_id"].tolist() == [12]
    assert asked["the word alone"][["user_id", "query", "event"]].values.tolist() == [[1, "dub", "search"]]
    assert len(asked["both"]) == 2 and asked["both"]["timestamp"].iloc[-1] > listens["timestamp"].max()


def test_an_artist_is_described_by_the_words_written_most_often():
    items = pd.DataFrame({"item_id": [10, 11], "title": ["a", "b"]})
    taggings = pd.DataFrame({"user_id": [1, 2, 3], "item_id": [10, 10, 10], "tag": ["ska", "dub", "dub"]})
    assert content.described(items, taggings)["description"].tolist() == ["dub, ska", ""]


# ------------------------------------------------------------------- ads


def test_what_the_first_places_earn_by_hand():
    result = pd.DataFrame(
        {
            "user_id": ["b"] * 4 + ["a"] * 2,
            "item_id": ["i1", "i2", "i3", "i4", "i1", "i2"],
            "upstream_score": [4.0, 3.0, 2.0, 1.0, 5.0, 6.0],
        }
    )
    taken = {("b", "i1"), ("b", "i4"), ("a", "i2")}
    by_bid = advertising.earned(result, result["upstream_score"], taken)
    assert by_bid.tolist() == [4.0, 6.0]  # users in order of appearance; i4 is in the fourth place of three
    assert advertising.earned(result, -result["upstream_score"], taken).tolist() == [1.0, 6.0]


def test_bids_are_of_items_not_had_and_higher_where_the_user_looked(shop):
    shop = Dataset("sample", shop.interactions, shop.items.assign(categories=shop.items["theme"]), None, [])
    trial = hold_out(shop, TimeCut(), "test")
    ads = advertising.lists_with_bids(trial, trial.user_ids[:40], trial.at, seed=1)
    had = set(trial.interactions[["user_id", "item_id"]].itertuples(index=False, name=None))
    assert not had & set(ads[["user_id", "item_id"]].itertuples(index=False, name=None))
    spread = ads.groupby("item_id")["upstream_score"].agg(["min", "max"])
    ratio = (spread["max"] / spread["min"]).round(6)
    assert set(ratio) == {1.0, 1.5}  # a seller has one price, half as much again where the user looked


# ---------------------------------------------------------------- neural


@pytest.fixture(scope="module")
def trained(shop):
    trial = hold_out(shop, TimeCut(), "test")
    return neural.fitted(trial), trial


def test_the_neural_model_beats_popularity_on_what_came_later(trained):
    model, trial = trained
    assert len(model.loss_curve) == len(model.recall_curve) > 3
    assert model.loss_curve[-1] < model.loss_curve[0] and model.recall_curve.max() > model.recall_curve[0]
    found = neural.judged(model, trial)
    assert found.recall > 1.5 * neural.judged(neural.Popularity().fit(trial.past, trial.items), trial).recall
    n_pairs, targets = len(trial.cases) * len(trial.items), trial.cases.targets
    assert found.decisions.n == n_pairs
    assert found.decisions.base_rate == pytest.approx(1 - len(targets.values) / n_pairs)
    # each of the ten a user is right or wrong, and each target is found or missed
    n_found = round(found.decisions.recall * len(targets.values))
    wrong = neural.K * len(trial.cases) - n_found + len(targets.values) - n_found
    assert found.decisions.accuracy == pytest.approx(1 - wrong / n_pairs)


def test_the_ten_best_are_those_of_a_sort_of_all_items_without_what_was_had(trained):
    model, trial = trained
    users = trial.user_ids[:3].tolist()
    shown = neural.best_titles(model, trial, users)
    titles = trial.items.frame["title"].to_numpy()
    scores = model.score_catalogue(trial.cases.take(np.arange(3)))
    for row, user in enumerate(users):
        order = [code for code in np.argsort(-scores[row], kind="stable") if code not in trial.seen[row]]
        assert shown[user] == titles[order[: neural.K]].tolist()


def test_attributes_are_numbers_of_which_none_is_missing():
    users = pd.DataFrame({"user_id": list("abc"), "age": [20, None, 40], "gender": ["f", None, "m"], "region": "x"})
    assert neural.attributes(users).tolist() == [[20, 1, 0, 1], [30, 0, 0, 1], [40, 0, 1, 1]]


def test_what_the_neural_example_prints(trained, capsys):
    model, trial = trained
    neural.say(model, trial)
    printed = capsys.readouterr().out
    best = int(np.argmin(model.held_out_curve))
    (kept,) = [line.split() for line in printed.splitlines() if line.endswith("kept")]
    curves = (model.loss_curve, model.held_out_curve, model.recall_curve, model.accuracy_curve)
    assert kept == [str(best + 1), *(f"{curve[best]:.4f}" for curve in curves), "kept"]
    assert f"neural     recall@10 {neural.judged(model, trial).recall:.4f}, accuracy" in printed
    assert all(user in printed for user in trial.user_ids[:3])


# ------------------------------------------------------------- their files


@pytest.mark.parametrize(("example", "words"), [(content, " [encoder]"), (friends, "")])
def test_without_the_published_files_the_usage_is_printed(example, words, tmp_path, monkeypatch):
    monkeypatch.delenv("LLM_RERANK_DATA", raising=False)
    usage = f"usage: python {example.__name__.replace('.', '/')}.py DIR{words}\n"
    for given in ([], [str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            example.main(given)
        assert ended.value.code.startswith(usage)
        assert "https://grouplens.org/datasets/hetrec-2011/" in ended.value.code
