"""Users as cases, by hand: known histories, given ones, both in one question, and items left out."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.item_statistics import ItemStatistics
from llm_rerank.recommendation.answering import Question, answer_questions
from llm_rerank.recommendation.histories import cases_of_users, last_time, without_each_item
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.state import END_OF_TIME
from tests.planted import cases_of, events_of


def ids(*values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.fixture
def known():
    """Users u0, u1, u2: rows (user, item, time, weight)."""
    rows = [(0, 1, 10, 1.0), (0, 2, 20, 0.5), (1, 3, 30, 2.0), (2, 4, 40, 1.5), (0, 1, 50, 0.25), (0, 5, 60, 3.0)]
    events = events_of(rows, 9, time_kind="time")
    return replace(events, user_rows=np.array([7, 8, 9]), queries=ids("", "", "one", "two", "", ""))


@pytest.fixture
def given():
    rows = [(0, 6, 15, 0.75), (1, 7, 25, 1.25), (1, 8, 35, 4.0), (1, 8, 61, 1.0)]
    events = events_of(rows, 9, time_kind="time")
    return replace(events, user_ids=ids("u1", "new"), queries=ids("other", "fresh", "", ""))


def rows_of(ragged):
    return [ragged[row].tolist() for row in range(len(ragged))]


def weights_of(cases, values):
    return [
        values[start:end].tolist() for start, end in zip(cases.history.offsets, cases.history.offsets[1:], strict=False)
    ]


def test_known_users_have_what_came_before_the_moment(known):
    cases, seen = cases_of_users(ids("u2", "u0", "nobody"), known, 60)
    assert rows_of(cases.history) == [[4], [1, 2, 1], []]  # the event at 60 itself is not past
    assert weights_of(cases, cases.history_weights) == [[1.5], [1.0, 0.5, 0.25], []]
    assert weights_of(cases, cases.history_times) == [[40], [10, 20, 50], []]
    assert [sorted(row) for row in rows_of(seen)] == [[4], [1, 2], []]
    assert cases.user_rows.tolist() == [9, 7, -1]
    assert cases.times.tolist() == [60, 60, 60]
    assert list(cases.queries) == ["two", "", ""]


def test_given_users_are_read_from_there_alone_and_all_keep_their_place(known, given):
    cases, seen = cases_of_users(ids("new", "u0", "u1", "nobody", "u2"), known, 61, given=given)
    assert rows_of(cases.history) == [[7, 8], [1, 2, 1, 5], [6], [], [4]]
    assert weights_of(cases, cases.history_weights) == [[1.25, 4.0], [1.0, 0.5, 0.25, 3.0], [0.75], [], [1.5]]
    assert weights_of(cases, cases.history_times) == [[25, 35], [10, 20, 50, 60], [15], [], [40]]
    assert [sorted(row) for row in rows_of(seen)] == [[7, 8], [1, 2, 5], [6], [], [4]]
    # u1 keeps the attributes that are known, though the history is another
    assert cases.user_rows.tolist() == [-1, 7, 8, -1, 9]
    assert list(cases.queries) == ["fresh", "", "other", "", "two"]


def test_each_item_is_left_out_with_all_its_events():
    cases = cases_of([[3, 5, 3, 4]], [[1]], times=[[10, 20, 30, 40]])
    cases = replace(cases, history_weights=np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32))
    without = without_each_item(cases, np.array([3, 4, 5]))
    assert rows_of(without.history) == [[5, 4], [3, 5, 3], [3, 3, 4]]
    assert weights_of(without, without.history_weights) == [[2, 4], [1, 2, 3], [1, 3, 4]]
    assert weights_of(without, without.history_times) == [[20, 40], [10, 20, 30], [10, 30, 40]]
    assert rows_of(without.candidates) == [[1], [1], [1]]


PLACEHOLDER = 4_102_358_400  # 2099-12-31


def test_the_last_time_is_the_newest_that_is_not_ahead_of_the_clock(known, given):
    assert last_time(known) == 60
    assert last_time(known, given) == 61
    assert last_time(replace(known, times=known.times - 10**9), given) == 61
    dated = [replace(events, times=np.append(events.times[:-1], PLACEHOLDER)) for events in (known, given)]
    assert [last_time(dated[0]), last_time(*dated), last_time(known, dated[1])] == [50, 50, 60]
    assert last_time(replace(known, times=known.times + PLACEHOLDER)) == PLACEHOLDER + 60  # a clock that stands
    assert last_time(replace(dated[0], time_kind="position")) == PLACEHOLDER  # which no clock bounds
    nothing = known.take(np.empty(0, dtype=np.int64))
    assert last_time(nothing) == 0


def test_a_folder_without_histories_decides_now_and_not_in_1970(fitted, shop, tmp_path):
    fitted.save(tmp_path / "bare", histories=False)
    bare = Reranker.load(tmp_path / "bare", verbose=False)
    events, items = fitted.saved.events, fitted.saved.fitted.items
    sold = events.times[events.positive].max()
    statistics = ItemStatistics.from_events(events, items, END_OF_TIME)
    assert last_time(bare.saved.events, statistics=bare.saved.statistics) == sold
    assert last_time(bare.saved.events, statistics=statistics) == sold
    at = int(sold) + 1
    expected = fitted.recommend(["a newcomer"], at=at)
    assert bare.recommend(["a newcomer"])["item_id"].tolist() == expected["item_id"].tolist()
    assert bare.recommend(["a newcomer"])["score"].tolist() == expected["score"].tolist()
    (answer,) = answer_questions(bare, [Question("a newcomer", k=10)])
    assert answer.at == at and answer.item_ids == expected["item_id"].tolist()
    seen = items.ids[:2].tolist()
    asked = expected["item_id"][0]
    by_hand = pd.DataFrame({"user_id": "a newcomer", "item_id": seen, "timestamp": [at - 2, at - 1]})
    by_hand = fitted.explain("a newcomer", asked, history=by_hand, at=at)
    assert bare.explain("a newcomer", asked, history=seen).score == by_hand.score


def test_one_date_that_is_still_to_come_moves_no_other_users_list(fitted):
    at = int(fitted.saved.events.times.max()) + 1
    users, items = list(fitted.saved.events.user_ids[:5]), fitted.saved.fitted.items.ids
    later = Reranker.from_saved(fitted.saved)
    later.update([{"user_id": "zz", "item_id": items[5], "timestamp": PLACEHOLDER, "event": "view"}])
    expected = later.recommend(users, at=at)
    pd.testing.assert_frame_equal(later.recommend(users), expected)
    (answer,) = answer_questions(later, [Question(users[0], k=10)])
    assert answer.at == at
    assert answer.item_ids == expected[expected["user_id"] == users[0]]["item_id"].tolist()
    table = pd.DataFrame({"user_id": ["zz"], "item_id": [items[5]], "timestamp": [PLACEHOLDER]})
    pd.testing.assert_frame_equal(fitted.recommend(users, histories=table), fitted.recommend(users, at=at))


@pytest.mark.parametrize("kind", ["cart", "favourite", "Add_To_Cart", "purchase"])
def test_a_lone_event_is_a_target_by_the_rule_of_the_fit_however_it_comes(fitted, kind):
    """The fit had purchases, so a cart is none, also where it is all that comes with the question."""
    assert fitted.saved.target_events == ("purchase",)
    at = int(fitted.saved.events.times.max()) + 100
    item = fitted.recommend(["new"], at=at)["item_id"][0]
    event = {"user_id": "new", "item_id": item, "timestamp": at - 60, "event": kind}
    given = fitted.recommend(["new"], histories=pd.DataFrame([event]), k=None, at=at)
    (answer,) = answer_questions(fitted, [Question("new", events=[event], at=at)])
    told = Reranker.from_saved(fitted.saved)
    told.update([event])
    assert (item in set(given["item_id"])) == (kind != "purchase")
    assert answer.item_ids == given["item_id"].tolist()
    assert (item in set(told.recommend(["new"], k=None, at=at)["item_id"])) == (kind != "purchase")


@pytest.mark.parametrize("written", ["Purchase", " order "])
def test_targets_are_the_same_kinds_however_the_settings_write_them(fitted, written):
    told = Reranker.from_saved(replace(fitted.saved, target_events=(written,)))
    at = int(fitted.saved.events.times.max()) + 100
    event = {"item_id": fitted.recommend(["new"], at=at)["item_id"][0], "timestamp": at - 60, "event": "purchase"}
    (answer,) = answer_questions(told, [Question("new", events=[event], at=at)])
    assert event["item_id"] not in answer.item_ids
