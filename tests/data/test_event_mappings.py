"""Events as mappings: read without a frame they are what the frame's door makes of them, or left to it."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.data.event_mappings import MOST_MAPPINGS, read_mappings
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.types import DataReport

TEXT_ITEMS = validate_items([{"item_id": f"i{code}", "title": "t"} for code in range(4)])
WHOLE_ITEMS = validate_items([{"item_id": code, "title": "t"} for code in range(4)])
NOW = 1_700_000_000

missing = st.none()
numbers = st.one_of(missing, st.sampled_from([0, -1, 2, 0.5, -0.25, 5.0, float("nan"), float("inf")]))
words = st.sampled_from([None, "", "  ", "a red  tent", "H<sub>2</sub>O &amp; x<br>y"])
kinds = st.sampled_from([None, "", "purchase", " Buy ", "view", "cart", "rate", "subscribe", "search"])


def rows_of(users, items, **columns):
    row = {"user_id": users, "item_id": items, "timestamp": st.integers(NOW, NOW + 3), **columns}
    optional = {"event": kinds, "rating": numbers, "quantity": numbers, "weight": numbers, "review": words,
                "query": words, "event_id": st.text(max_size=3)}  # fmt: skip
    return st.lists(st.fixed_dictionaries(row, optional=optional), min_size=1, max_size=7)


texts_as_ids = rows_of(st.sampled_from(["u1", "u2", " u3"]), st.sampled_from(["i0", "i1", "i3", "none such", None]))
whole_ids = rows_of(st.integers(5, 7), st.sampled_from([0, 1, 3, 99, None]))
times_as_fractions = rows_of(st.just("u"), st.just("i1"), timestamp=st.sampled_from([NOW + 0.5, NOW, NOW + 2.0]))


def both(rows, items, targets, min_rating):
    reports = DataReport(), DataReport()
    rules = {"target_events": targets, "min_rating": min_rating}
    lean = read_mappings(rows, items, time_kind="time", report=reports[0], **rules)
    framed = validate_interactions(rows, items, require_targets=False, report=reports[1], **rules)
    return lean, framed, reports


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.tuples(texts_as_ids, st.just(TEXT_ITEMS)),
        st.tuples(whole_ids, st.just(WHOLE_ITEMS)),
        st.tuples(times_as_fractions, st.just(TEXT_ITEMS)),
    ),
    st.sampled_from([("purchase",), ("cart", "buy"), ("rating", "interaction", "subscribe")]),
    st.sampled_from([None, 3.0]),
)
def test_it_is_what_a_frame_gives(given_rows, targets, min_rating):
    rows, items = given_rows
    lean, framed, reports = both(rows, items, targets, min_rating)
    assert lean is not None
    for field in fields(framed):
        here, there = getattr(lean, field.name), getattr(framed, field.name)
        if isinstance(there, np.ndarray):
            assert here.dtype == there.dtype, field.name
            np.testing.assert_array_equal(here, there, err_msg=field.name)
            assert [type(value) for value in here.tolist()] == [type(value) for value in there.tolist()]
        else:
            assert here == there
    assert reports[0].dropped == reports[1].dropped
    assert reports[0].advice == reports[1].advice


def test_positions_stay_positions():
    rows = [{"user_id": "u", "item_id": "i1", "timestamp": time} for time in (7, 3)]
    report = DataReport()
    events = read_mappings(
        rows, TEXT_ITEMS, time_kind="position", target_events=("interaction",), min_rating=None, report=report
    )
    assert (events.times.tolist(), events.time_kind) == ([3, 7], "position")


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": None},
        {"user_id": " "},
        {"user_id": 1.5},
        {"user_id": True},
        {"user_id": 2**63},
        {"user_id": "half \ud83d"},
        {"item_id": ["i1"]},
        {"timestamp": "2023-11-14"},
        {"timestamp": None},
        {"timestamp": 5},
        {"timestamp": NOW * 1000},
        {"timestamp": float("nan")},
        {"timestamp": 10**400},
        {"rating": "4"},
        {"rating": True},
        {"weight": 1e39},
        {"quantity": -(10**400)},
        {"event": 3},
        {"review": ["a", "b"]},
        {"parent_asin": "i1"},
    ],
)
def test_what_is_not_plain_is_left_to_the_frame(change):
    row = {"user_id": "u", "item_id": "i1", "timestamp": NOW} | change
    report = DataReport()
    rules = {"time_kind": "time", "target_events": ("interaction",), "min_rating": None, "report": report}
    assert read_mappings([row], TEXT_ITEMS, **rules) is None
    assert report.dropped == {}


def test_many_mixed_or_no_events_are_left_to_the_frame():
    row = {"user_id": "u", "item_id": "i1", "timestamp": NOW}
    rules = {"time_kind": "time", "target_events": ("interaction",), "min_rating": None, "report": DataReport()}
    assert read_mappings([], TEXT_ITEMS, **rules) is None
    assert read_mappings([row] * (MOST_MAPPINGS + 1), TEXT_ITEMS, **rules) is None
    assert len(read_mappings([row] * MOST_MAPPINGS, TEXT_ITEMS, **rules)) == MOST_MAPPINGS
    assert read_mappings([row, row | {"user_id": 7}], TEXT_ITEMS, **rules) is None
    assert read_mappings([row, "u"], TEXT_ITEMS, **rules) is None
    assert read_mappings("orders.csv", TEXT_ITEMS, **rules) is None
    assert read_mappings([{"user_id": "u", "item_id": "i1"}], TEXT_ITEMS, **rules) is None
