"""Events that repeat another exactly, and events ahead of the clock: counted and told, and none is dropped."""

import time

import numpy as np
import pandas as pd

from llm_rerank.data.event_doubts import AHEAD_S, n_known
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.types import DataReport

START = 1_600_000_000
ITEMS = validate_items({"item_id": ["a", "b"], "title": ["bee", "cat"]})
ROW = {
    "user_id": "u", "item_id": "a", "timestamp": START, "event": "purchase", "rating": 4.0, "quantity": 1.0,
    "weight": None, "review": "fine", "query": None,
}  # fmt: skip


def read(rows):
    report = DataReport()
    events = validate_interactions(pd.DataFrame(rows), ITEMS, report=report, require_targets=False)
    return events, report.advice


def test_exact_repeats_are_counted_and_kept():
    events, (advice,) = read([ROW, {**ROW, "item_id": "b"}, ROW, ROW])
    assert len(events) == 4
    assert advice == (
        "2 of 4 rows of interactions repeat another exactly (user, item, time, kind and all else that is read), and "
        "count again; drop them if an export doubled them"
    )
    assert read([ROW])[1] == []


def test_rows_that_differ_in_anything_that_is_read_are_no_repeats():
    others = {
        "user_id": "v", "item_id": "b", "timestamp": START + 1, "event": "subscribe", "rating": 5.0, "quantity": 2.0,
        "weight": 0.5, "review": "bad", "query": "bee",
    }  # fmt: skip
    for name, value in others.items():
        assert read([ROW, {**ROW, name: value}])[1] == [], name
    assert read([{**ROW, "event": "subscribe"}, {**ROW, "event": "renew"}])[1] == []  # they weigh the same
    assert len(read([{**ROW, "note": 1}, {**ROW, "note": 2}])[1]) == 1  # no such column is read


def test_rows_in_the_future_are_counted_with_the_newest_day():
    tomorrow = int(time.time()) + AHEAD_S
    rows = [ROW, {**ROW, "timestamp": tomorrow - 600}]
    assert read(rows)[1] == []
    _, (advice,) = read([*rows, {**ROW, "timestamp": 4_070_908_800}, {**ROW, "timestamp": tomorrow + 600}])
    assert advice.startswith("2 of 4 rows of interactions lie more than a day in the future (the newest on 2099-01-01)")


def test_positions_have_no_future():
    assert read([{**ROW, "timestamp": place} for place in (1, 2, 3)])[1] == []


def test_known_events_are_those_that_say_the_same_in_everything_that_is_kept():
    held, _ = read([{**ROW, "timestamp": START + step} for step in range(4)])
    new, _ = read([{**ROW, "timestamp": START + 2}, {**ROW, "timestamp": START + 3, "review": "bad"},
                   {**ROW, "timestamp": START + 9}, {**ROW, "timestamp": START + 2}])  # fmt: skip
    assert n_known(held, new) == 2
    assert n_known(held, held) == 4
    assert n_known(held.take(np.empty(0, dtype=np.int64)), new) == n_known(held, new.take(np.arange(0))) == 0
