"""Questions that break a rule: refused with value, rule and remedy, or what was left out is counted and said."""

import datetime
import warnings
from dataclasses import replace
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.times import read_moment
from llm_rerank.options import moment
from llm_rerank.recommendation.answering import Question, answer_questions
from llm_rerank.recommendation.asking import asked_moments
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError, DriftWarning, DroppedRowsWarning
from tests.planted import CLOCK_START

AT = 1_700_000_000


@pytest.fixture
def candidates(shop):
    ids = shop[1]["item_id"]
    return pd.DataFrame({"user_id": ["u0", None, "u0", "u1"], "item_id": [ids[0], ids[1], "zzz", ids[2]]})


def test_dropped_candidates_are_counted_by_reason(fitted, candidates):
    with pytest.warns(DroppedRowsWarning) as caught:
        result = fitted.rerank(candidates, on_unknown="drop")
    assert [str(warning.message) for warning in caught] == [
        "dropped 1 rows: candidates: user_id or item_id is missing; 1 rows: candidates: item is absent from items"
    ]
    assert caught[0].filename == __file__
    assert len(result) == 2
    assert result.attrs["data"]["dropped"] == {
        "candidates: user_id or item_id is missing": 1,
        "candidates: item is absent from items": 1,
    }
    with pytest.warns(DroppedRowsWarning, match="user_id or item_id is missing"):
        fitted.rerank(pl.from_pandas(candidates))


def test_users_without_a_history_are_counted_and_nothing_else_is_said(fitted, shop):
    ids = shop[1]["item_id"]
    asked = pd.DataFrame({"user_id": np.repeat(["U0", "u1", "U2"], 3), "item_id": [*ids[:3]] * 3})
    said = "2 of 3 users have no history here (first: 'U0'): ranked as newcomers"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DriftWarning)
        assert fitted.rerank(asked).attrs["data"]["notes"] == [said]
        assert fitted.recommend(["U0", "u1", "U2"]).attrs["data"]["notes"] == [said]
        # known to the model, though not at that moment
        assert fitted.recommend(["u1"], at=CLOCK_START - 10).attrs["data"]["notes"] == []
        assert fitted.recommend(None, k=1).attrs["data"]["notes"] == []
        given = pd.DataFrame({"user_id": ["U0"], "item_id": [ids[0]], "timestamp": [AT]})
        notes = fitted.rerank(asked, histories=given).attrs["data"]["notes"]
    assert notes[-1] == "1 of 3 users have no history here (first: 'U2'): ranked as newcomers"


def test_what_is_dropped_of_histories_is_counted_too(fitted, shop):
    ids = shop[1]["item_id"]
    histories = pd.DataFrame(
        {
            "user_id": ["new", "new", "new"],
            "item_id": [ids[0], "zzz", ids[1]],
            "timestamp": ["2024-05-31", "2024-05-31", "soon"],
        }
    )
    asked = pd.DataFrame({"user_id": "new", "item_id": ids[:5]})
    expected = {
        "histories: item is absent from items": 1,
        "histories: timestamp is missing, unreadable or out of range": 1,
    }
    with pytest.warns(DroppedRowsWarning, match="histories: timestamp is missing"):
        assert fitted.rerank(asked, histories=histories).attrs["data"]["dropped"] == expected
    with pytest.warns(DroppedRowsWarning, match="histories: timestamp is missing"):
        assert fitted.recommend(["new"], histories=histories).attrs["data"]["dropped"] == expected
    with pytest.warns(DroppedRowsWarning, match="1 rows: histories: item is absent from items"):
        fitted.explain("new", ids[0], history=[ids[3], "zzz"])


def test_moments_are_found_by_either_spelling_and_some_must_be_of_those_asked(fitted, shop):
    assert asked_moments({"7": 5, 8.0: 6, UUID(int=3): 7}, [7, "8", 9, str(UUID(int=3))]) == [5, 6, None, 7]
    assert asked_moments({}, [7]) == [None]
    for ask in (fitted.recommend, lambda users, at: fitted.explain(users[0], shop[1]["item_id"][0], at=at)):
        with pytest.raises(DataError, match=r"at names 'u1' and none of the users asked for \(first: 'u0'\)"):
            ask(["u0"], at={"u1": AT})


def test_histories_of_searches_need_no_column_of_items(fitted, shop):
    asked = pd.DataFrame({"user_id": ["u0", "new"], "item_id": shop[1]["item_id"][:2]})
    searches = pd.DataFrame({"user_id": ["new"], "query": ["red lamp"], "event": ["search"], "timestamp": [AT]})
    with_column = fitted.rerank(asked, histories=searches.assign(item_id=None))
    pd.testing.assert_frame_equal(fitted.rerank(asked, histories=searches), with_column)
    assert fitted.recommend(histories=pl.from_pandas(searches), k=3)["user_id"].to_list() == ["new"] * 3
    assert searches.columns.tolist() == ["user_id", "query", "event", "timestamp"]
    with pytest.raises(DataError, match="histories has no column 'item_id'.*only a table of searches"):
        fitted.rerank(asked, histories=searches.assign(query=""))


def test_a_history_of_item_ids_may_be_a_list_an_array_or_a_series(fitted, shop):
    ids = shop[1]["item_id"]
    by_list = fitted.explain("new", ids[0], history=[ids[3], ids[4]])
    assert [effect.item_id for effect in by_list.history]
    others = ((ids[3], ids[4]), ids[3:5], ids[3:5].to_numpy(), np.array([ids[3], ids[4]]), pd.Index(ids[3:5]))
    for history in others:
        assert str(fitted.explain("new", ids[0], history=history)) == str(by_list)
    with pytest.raises(DataError, match="history is empty"):
        fitted.explain("new", ids[0], history=np.array([]))
    with pytest.raises(DataError, match=r"no item of the catalogue \(first: 3\)"):
        fitted.explain("new", ids[0], history=np.array([3, 4]))
    with pytest.raises(DataError, match="a table is of type ndarray"):
        fitted.explain("new", ids[0], history=np.array([[3, 4]]))


def test_whole_tables_give_no_warning(fitted, candidates):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DroppedRowsWarning)
        result = fitted.rerank(candidates.dropna())  # the unknown item is kept
        fitted.recommend(["u0"])
        fitted.explain("u0", candidates["item_id"][0])
    assert result.attrs["data"]["dropped"] == {} and "kept without a score" in result.attrs["data"]["notes"][0]


def test_one_mapping_serves_candidates_and_histories(fitted, shop, candidates):
    own = {"customer": "user_id", "sku": "item_id", "when": "timestamp"}
    names = {ours: given for given, ours in own.items()}
    histories = pd.DataFrame({"user_id": "u0", "item_id": shop[1]["item_id"][40:44], "timestamp": AT})
    asked = candidates.dropna()
    expected = fitted.rerank(asked, histories=histories)
    pd.testing.assert_frame_equal(
        fitted.rerank(asked.rename(columns=names), histories=histories.rename(columns=names), columns=own), expected
    )
    pd.testing.assert_frame_equal(
        fitted.rerank(asked, histories=histories.rename(columns=names), columns=own), expected
    )
    pd.testing.assert_frame_equal(
        fitted.recommend(["u0"], histories=histories.rename(columns=names), columns=own),
        fitted.recommend(["u0"], histories=histories),
    )
    with pytest.raises(DataError, match="columns maps 'client', which no table has"):
        fitted.rerank(asked, columns={"client": "user_id"})
    with pytest.raises(DataError, match="histories has no column 'user_id'; .*pass columns="):
        fitted.recommend(histories=histories.rename(columns=names), columns={"sku": "item_id"})


@pytest.mark.parametrize("at", ["gestern", "", float("nan"), float("inf"), 1e30, -1e30, pd.NaT, True, [AT], "12:00"])
def test_a_moment_that_is_none_is_refused(fitted, candidates, at):
    for ask in (
        lambda: fitted.rerank(candidates.dropna(), at=at),
        lambda: fitted.recommend(["u0"], at=at),
        lambda: fitted.explain("u0", candidates["item_id"][0], at=at),
    ):
        with pytest.raises(DataError, match="^at is .*; give seconds since 1970, or a date such as"):
            ask()


def test_moments_of_every_kind():
    seconds = int(pd.Timestamp("2024-05-31 10:00", tz="UTC").timestamp())
    for value in (
        seconds,
        float(seconds),
        np.int64(seconds),
        "2024-05-31 10:00",
        "2024-05-31T12:00:00+02:00",
        "31.5.2024 10:00",
        datetime.datetime(2024, 5, 31, 10),
        pd.Timestamp("2024-05-31 12:00", tz="Europe/Berlin"),
        np.datetime64("2024-05-31T10:00"),
    ):
        assert read_moment(value, "time") == seconds
    assert read_moment(datetime.date(2024, 5, 31), "time") == seconds - 36_000
    assert read_moment("20240531", "time") == seconds - 36_000
    assert read_moment("202405311000", "time") == read_moment("20240531100000", "time") == seconds
    for text in ("20240531", "202405311000", "2024-05-31"):
        assert moment(text) == text  # of the command line
    assert moment(str(seconds)) == seconds and moment("12") == 12 and moment(None) is None
    assert read_moment(7, "position") == 7 and read_moment("20240531", "position") == 20240531
    for value in (20240531, 20240531.0, 0):
        with pytest.raises(DataError, match=r"now is \d+(\.0)?, which is too small for a time of .* as text"):
            read_moment(value, "time", name="now")
    assert read_moment(365 * 86_400, "time") == 365 * 86_400  # 1971, as early as a table's times may be
    for value in ("2024-05-31", float("nan"), 2.0**70):
        with pytest.raises(DataError, match="now is .*this shop's times are positions: give a whole number"):
            read_moment(value, "position", name="now")
    with pytest.raises(DataError, match="may be day/month or month/day"):
        read_moment("05/06/2024", "time")


def test_expire_takes_a_moment_as_well(fitted):
    model = Reranker.from_saved(replace(fitted.saved, config=replace(fitted.config, retention_days=10_000.0)))
    with pytest.raises(DataError, match="now is 'gestern'"):
        model.expire("gestern")
    assert model.expire(CLOCK_START).forgotten == []


def test_one_user_alone_is_no_list_of_users(fitted):
    for users in ("u1", b"u1", 5, {"user_id": ["u1"]}, pd.DataFrame({"user_id": ["u1"]})):
        with pytest.raises(DataError, match="user_ids is .*; give a list of ids"):
            fitted.recommend(users)
    with pytest.raises(DataError, match="user_ids is 'u1'; give a list of ids"):
        fitted.forget("u1")
    expected = fitted.recommend(["u1", "u2"], k=3)
    for users in (("u1", "u2"), pd.Series(["u1", "u2"]), np.array(["u1", "u2"]), iter(["u1", "u2", "u1"])):
        pd.testing.assert_frame_equal(fitted.recommend(users, k=3), expected)


@pytest.mark.parametrize("k", ["3", 2.5, True, 0, -1])
def test_k_is_a_whole_number(fitted, candidates, k):
    for ask in (lambda: fitted.rerank(candidates.dropna(), k=k), lambda: fitted.recommend(["u0"], k=k)):
        with pytest.raises(DataError, match="k is .*; it must be a whole number of at least 1"):
            ask()


def test_ids_that_are_lists_are_refused(fitted, shop):
    item = shop[1]["item_id"][0]
    for ask in (
        lambda: fitted.recommend([["u1"]]),
        lambda: fitted.explain(["u1"], item),
        lambda: fitted.explain("u1", [item]),
        lambda: fitted.explain("u1", item, versus={"a": 1}),
    ):
        with pytest.raises(DataError, match="holds .*; an id is one number or text"):
            ask()


def test_tables_that_are_none(fitted, shop):
    events, items = shop
    model = Reranker(RerankerConfig(encoder=None), verbose=False)
    with pytest.raises(DataError, match="interactions is None; give a frame or the path of a file"):
        model.fit(None, items)
    with pytest.raises(DataError, match="items is None"):
        model.fit(events, None)
    with pytest.raises(DataError, match="candidates is None"):
        fitted.rerank(None)


def test_impressions_of_items_nobody_knows(shop):
    events, items = shop
    shown = pd.DataFrame({"user_id": "u0", "item_id": ["x", "y"], "timestamp": AT})
    with pytest.raises(DataError, match="no row of impressions has a user and an item of items .first item_id: 'x'"):
        Reranker(RerankerConfig(encoder=None), verbose=False).fit(events, items, impressions=shown)


def test_numbers_that_no_float_holds_are_refused(fitted, shop):
    ids = shop[1]["item_id"]
    huge = 10**400
    for ask in (
        lambda: fitted.recommend(["u0"], at=huge),
        lambda: fitted.explain("u0", ids[0], upstream_score=huge),
        lambda: answer_questions(fitted, [Question("u0", at=huge)]),
        lambda: answer_questions(fitted, [Question("u0", item_ids=ids[:2].tolist(), upstream_scores=[1, -huge])]),
    ):
        with pytest.raises(DataError, match=r"(at|upstream_score\S*) is -?1000"):
            ask()


def test_a_history_in_a_table_is_the_users_own(fitted, shop):
    events, items = shop
    others = events[events["user_id"] == "u2"]
    with pytest.raises(DataError, match="history has no usable row of user 'u1'; give that user's interactions"):
        fitted.explain("u1", items["item_id"][0], history=others)
    assert fitted.explain("u2", items["item_id"][0], history=others).history
