"""Users as cases, by hand: known histories, given ones, both in one question, and items left out."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.recommendation.histories import cases_of_users, without_each_item
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
