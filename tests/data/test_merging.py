"""Events added one by one or in batches, late ones too: equal to sorting and counting everything anew."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.data.features import ItemStatistics
from llm_rerank.data.id_index import codes_by_id
from llm_rerank.data.merging import (
    longer_timeline,
    match_users,
    places_of,
    with_events,
    with_items,
    without_events,
)
from llm_rerank.data.splits import Timeline
from llm_rerank.types import EVENT_ARRAYS, DataError
from tests.data.making import make_events, make_items, texts

N_USERS, N_ITEMS = 4, 5
CATALOGUE = make_items([{"brand": f"b{code % 2}", "categories": "A > B", "price": 1.0 + code} for code in range(5)])

rows_of_events = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.integers(0, N_USERS - 1),
            "item": st.integers(-1, N_ITEMS - 1),
            "time": st.integers(0, 6),
            "positive": st.booleans(),
            "rating": st.sampled_from([float("nan"), 1.0, 2.5, 5.0]),
            "mood": st.sampled_from([float("nan"), -0.3, 0.1, 0.7]),
        }
    ),
    max_size=14,
)


def events_of(rows, **settings):
    rows = [row | {"positive": row["positive"] and row["item"] >= 0} for row in rows]
    return make_events(rows, n_users=N_USERS, n_items=N_ITEMS, **settings)


def moods_of(rows):
    return np.array([row["mood"] for row in sorted(rows, key=lambda row: row["time"])], dtype=np.float32)


def same_codes(new):
    """As ``match_users`` returns events of known users: no user is new."""
    return replace(new, user_ids=new.user_ids[:0], user_rows=new.user_rows[:0])


def assert_same_statistics(one, other):
    assert one.series.keys() == other.series.keys()
    for name, series in one.series.items():
        for part in fields(series):
            here, there = getattr(series, part.name), getattr(other.series[name], part.name)
            for member in fields(here) if part.name == "timeline" else [None]:
                first, second = (here, there) if member is None else (getattr(x, member.name) for x in (here, there))
                assert first.dtype == second.dtype, (name, part.name)
                np.testing.assert_array_equal(first, second, err_msg=f"{name}.{part.name}")


@settings(deadline=None)
@given(rows_of_events, rows_of_events, st.booleans(), st.sampled_from([4, 10**9]))
def test_statistics_with_added_events_equal_a_recount(before, new, one_by_one, as_of):
    events, added = events_of(before), events_of(new)
    moods, new_moods = moods_of(before), moods_of(new)
    statistics = ItemStatistics.from_events(events, CATALOGUE, as_of, moods)
    parts = [np.array([row]) for row in range(len(added))] if one_by_one else [np.arange(len(added))]
    for part in parts:
        events, rows = with_events(events, same_codes(added.take(part)))
        statistics = statistics.with_events(events, rows, new_moods[part])
    together = before + sorted(new, key=lambda row: row["time"])
    recount = ItemStatistics.from_events(events_of(together), CATALOGUE, as_of, moods_of(together))
    assert_same_statistics(statistics, recount)


@settings(deadline=None)
@given(rows_of_events, rows_of_events)
def test_events_stand_where_a_sort_would_put_them(before, new):
    events, rows = with_events(events_of(before), same_codes(events_of(new)))
    together = events_of(before + sorted(new, key=lambda row: row["time"]))
    for name in EVENT_ARRAYS:
        np.testing.assert_array_equal(getattr(events, name), getattr(together, name))
        assert getattr(events, name).dtype == getattr(together, name).dtype
    for name in EVENT_ARRAYS:
        np.testing.assert_array_equal(getattr(events.take(rows), name), getattr(events_of(new), name))


@settings(deadline=None)
@given(rows_of_events, rows_of_events)
def test_a_timeline_made_longer_equals_one_made_anew(before, new):
    events, added = events_of(before), events_of(new)
    timeline = Timeline.of(events.users, events.times)
    places = places_of(events.times, added.times)
    longer = longer_timeline(timeline, events.users, places, added.users, added.times)
    anew = Timeline.of(np.insert(events.users, places, added.users), np.insert(events.times, places, added.times))
    for member in fields(anew):
        np.testing.assert_array_equal(getattr(longer, member.name), getattr(anew, member.name))


def test_a_purchase_that_comes_late_takes_the_place_of_the_first():
    bought = {"user": 0, "item": 1, "time": 5, "mood": np.nan}
    events = events_of([bought | {"positive": True}, bought | {"positive": True, "user": 1}])
    statistics = ItemStatistics.from_events(events, CATALOGUE, 100)
    assert statistics.series["buyers"].times.tolist() == [5, 5]
    late = events_of([bought | {"positive": True, "time": 2}])
    events, rows = with_events(events, same_codes(late))
    statistics = statistics.with_events(events, rows, np.array([np.nan], dtype=np.float32))
    assert statistics.series["buyers"].times.tolist() == [2, 5]
    assert statistics.series["firsts"].times.tolist() == [2]
    assert statistics.series["sales"].times.tolist() == [2, 5, 5]


def test_known_users_keep_their_codes_and_new_ones_follow():
    events = events_of([{"user": user, "item": 0, "time": user, "positive": True} for user in range(4)])
    new = replace(
        events_of([{"user": user, "item": 1, "time": 9, "positive": True} for user in (2, 0, 3, 2)]),
        user_ids=texts(["u3", "nobody", "new", 7]),
        user_rows=np.array([-1, -1, 5, -1]),
    )
    matched = match_users(new, codes_by_id(events.user_ids), events.n_users)
    assert matched.users.tolist() == [4, 3, 5, 4]  # "nobody" has no event
    assert matched.user_ids.tolist() == ["new", 7]
    merged, _ = with_events(events, matched)
    assert merged.user_ids.tolist() == ["u0", "u1", "u2", "u3", "new", 7]
    assert merged.user_rows.tolist() == [100, 101, 102, 103, 5, -1]
    again = match_users(replace(new, user_ids=texts(["u3", "nobody", "new", "7"])), codes_by_id(merged.user_ids), 6)
    assert again.users.tolist() == [4, 3, 5, 4]  # "7" is the 7 that is known
    same, _ = with_events(merged, again)
    assert same.user_ids is merged.user_ids


def test_events_go_with_the_users_that_have_no_others():
    events = events_of(
        [{"user": user, "item": user, "time": time, "positive": True} for time, user in enumerate([0, 1, 3, 1, 2])]
    )
    left, gone = without_events(events, np.array([True, True, False, False, True]))
    assert left.user_ids.tolist() == ["u1", "u3"]
    assert gone.tolist() == ["u0", "u2"]
    assert left.user_ids[left.users].tolist() == ["u3", "u1"]
    assert left.user_rows.tolist() == [101, 103]
    assert left.items.tolist() == [3, 1]
    assert without_events(left, np.zeros(2, dtype=bool))[0].user_ids is left.user_ids
    nothing, gone = without_events(left, np.ones(2, dtype=bool))
    assert (len(nothing), nothing.n_users, gone.tolist()) == (0, 0, ["u1", "u3"])


def test_users_who_never_had_an_event_stay():
    events = events_of([{"user": 3, "item": 0, "time": 1, "positive": True}])
    left, gone = without_events(events, np.array([True]))
    assert left.user_ids.tolist() == ["u0", "u1", "u2"]
    assert gone.tolist() == ["u3"]


def test_a_catalogue_that_grew_changes_the_attributes_and_no_count():
    events = events_of([{"user": 0, "item": 1, "time": 5, "positive": True, "rating": 4.0}])
    longer = make_items([{"brand": f"b{code % 3}", "categories": "A", "price": 2.0} for code in range(7)])
    grown = ItemStatistics.from_events(events, CATALOGUE, 100).with_items(longer)
    anew = ItemStatistics.from_events(with_items(events, 7), longer, 100)
    assert_same_statistics(grown, anew)
    assert grown.n_items == 7
    np.testing.assert_array_equal(grown.log_prices, anew.log_prices)
    np.testing.assert_array_equal(grown.brands.of_item.values, anew.brands.of_item.values)
    np.testing.assert_array_equal(grown.categories.weights, anew.categories.weights)


def test_what_does_not_fit_together_is_refused():
    events = events_of([{"user": 0, "item": 1, "time": 5, "positive": True}])
    with pytest.raises(DataError, match="the others of 6 items"):
        with_events(with_items(events, 6), events)
    with pytest.raises(DataError, match="kind 'position', the others .* kind 'time'"):
        with_events(events, replace(events, time_kind="position"))
    with pytest.raises(DataError, match="n_items is 4 and was 5"):
        with_items(events, 4)
    statistics = ItemStatistics.from_events(events, CATALOGUE, 100)
    with pytest.raises(DataError, match="events are of 6 items and the statistics of 5"):
        statistics.with_events(with_items(events, 6), np.array([0]), np.array([0.5], dtype=np.float32))
    with pytest.raises(DataError, match="2 values for 1 events"):
        statistics.with_events(events, np.array([0]), np.array([0.5, 1], dtype=np.float32))
