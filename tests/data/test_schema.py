from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.data.schema import (
    ITEM_COLUMNS,
    validate_impressions,
    validate_interactions,
    validate_items,
    validate_users,
)
from llm_rerank.types import EVENT_ARRAYS, DataError, DataReport

START = 1_700_000_000


def items_of(*ids):
    return validate_items(pd.DataFrame({"item_id": list(ids), "title": [f"title {item}" for item in ids]}))


def events_of(rows, names=("user_id", "item_id", "timestamp"), items=None, **settings):
    report = DataReport()
    frame = pd.DataFrame(rows, columns=list(names))
    events = validate_interactions(frame, items or items_of("a", "b", "c"), report=report, **settings)
    return events, report


def test_ids_of_mapped_columns_of_files_stay_as_written(tmp_path):
    (tmp_path / "items.csv").write_text("article,title\n1.10,a\n1.1,b\n")
    (tmp_path / "events.csv").write_text("guest,article,timestamp\n2.10,1.1,1700000000\n2.1,1.10,1700000001\n")
    items = validate_items(tmp_path / "items.csv", columns={"article": "item_id"})
    assert items.ids.tolist() == ["1.10", "1.1"]
    columns = {"guest": "user_id", "article": "item_id"}
    events = validate_interactions(tmp_path / "events.csv", items, columns=columns)
    assert events.user_ids.tolist() == ["2.10", "2.1"] and events.items.tolist() == [1, 0]


class TestItems:
    def test_every_column_is_there_and_unknown_columns_pass_through(self):
        given = pd.DataFrame(
            {
                "title": ["Lamp <b>X</b>", None],
                "item_id": ["a", "b"],
                "colour": ["red", None],
                "price": ["$1,299.00", "n/a"],
                "categories": [["Home", "Lamps"], None],
            }
        )
        before = given.copy(deep=True)
        report = DataReport()
        items = validate_items(given, report=report)
        assert items.frame.columns.tolist() == [*ITEM_COLUMNS, "colour"]
        assert items.frame["title"].tolist() == ["Lamp X", ""] and items.frame["colour"].iloc[0] == "red"
        assert items.frame["categories"].tolist() == ["Home > Lamps", ""]
        assert items.frame["price"].dtype == np.float64 and items.frame["price"].iloc[0] == 1299
        assert np.isnan(items.frame["price"].iloc[1])
        for column in ("description", "brand", "specs", "image"):
            assert items.frame[column].tolist() == ["", ""]
        assert items.ids.tolist() == ["a", "b"] and items.texts.tolist() == ["", ""] and len(items) == 2
        assert report.notes == [
            "1 prices are unreadable or not above 0 (first: 'n/a'); taken as unknown",
            "1 of 2 items have no title",
        ]
        pd.testing.assert_frame_equal(given, before)

    def test_repeated_and_missing_ids_are_dropped_and_counted(self):
        report = DataReport()
        rows = {"item_id": ["a", None, "a", "b", ""], "title": ["first", "none", "second", "B", "blank"]}
        items = validate_items(rows, report=report)
        assert items.ids.tolist() == ["a", "b"] and items.frame["title"].tolist() == ["first", "B"]
        assert items.frame.index.tolist() == [0, 1]
        assert report.dropped == {
            "items: item_id is missing": 2,
            "items: item_id is repeated (the first row is kept)": 1,
        }

    def test_any_kind_of_table(self):
        rows = {"item_id": [1, 2], "title": ["A", "B"], "price": [1.0, 2.0]}
        expected = validate_items(pd.DataFrame(rows)).frame
        for table in (pl.DataFrame(rows), pa.table(rows), rows):
            pd.testing.assert_frame_equal(validate_items(table).frame, expected, check_dtype=False)

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"item_id": [1], "name": ["A"]}, r"items has no column 'title'; .*columns=\{'name': 'title'\}"),
            ({"item_id": [], "title": []}, "items has no rows; give at least one"),
            ({"item_id": [None, ""], "title": ["A", "B"]}, "items has no item_id in any row; fill the column"),
            (
                {"item_id": pd.Series([1, "1"], dtype=object), "title": ["A", "B"]},
                "item_id of items mixes numbers and texts, and 1 and '1' would be one id",
            ),
        ],
    )
    def test_errors(self, table, message):
        with pytest.raises(DataError, match=message):
            validate_items(pd.DataFrame(table))

    def test_an_empty_file_is_named(self, tmp_path):
        path = tmp_path / "items.csv"
        path.write_text("")
        with pytest.raises(DataError, match=r"items\.csv is empty"):
            validate_items(path)


class TestUsers:
    def test_attributes_pass_through_and_repeats_are_counted(self):
        report = DataReport()
        users = validate_users(
            {"customer": [3, 1, 3], "age": [30, None, 31]}, columns={"customer": "user_id"}, report=report
        )
        assert users.ids.tolist() == [3, 1] and users.frame["age"].iloc[0] == 30 and len(users) == 2
        assert report.dropped == {"users: user_id is repeated (the first row is kept)": 1}
        with pytest.raises(DataError, match="users has no column 'user_id'"):
            validate_users({"age": [1]})


class TestInteractions:
    def test_events_are_sorted_by_time_and_ties_keep_the_input_order(self):
        rows = [("v", "c", START + 5), ("u", "b", START), ("u", "a", START), ("u", "c", START + 5), ("v", "a", START)]
        events, _ = events_of(rows)
        assert events.times.tolist() == [START] * 3 + [START + 5] * 2
        assert events.items.tolist() == [1, 0, 0, 2, 2]
        assert events.user_ids.tolist() == ["u", "v"] and events.users.tolist() == [0, 0, 1, 1, 0]
        assert events.time_kind == "time" and events.n_items == 3 and events.n_users == 2
        assert events.user_rows.tolist() == [-1, -1]
        for name in EVENT_ARRAYS:
            assert len(getattr(events, name)) == 5, name
        assert events.users.dtype == events.items.dtype == events.times.dtype == np.int64
        assert events.weights.dtype == np.float32 and events.positive.dtype == np.bool_

    def test_every_dropped_row_is_counted_by_its_first_reason(self):
        rows = [
            ("u", "a", START),
            (None, "a", START),
            ("", None, "never"),  # no user and no item and no time: counted once
            ("u", None, START),
            ("u", "x", START),
            ("u", "b", None),
            ("u", "b", START + 1),
        ]
        events, report = events_of([(u, i, START if t == "never" else t) for u, i, t in rows])
        assert events.items.tolist() == [0, 1]
        assert report.dropped == {
            "interactions: user_id is missing": 2,
            "interactions: item_id is missing, and there is no query": 1,
            "interactions: timestamp is missing, unreadable or out of range": 1,
            "interactions: item is absent from items": 1,
        }

    def test_unreadable_dates_are_counted(self):
        _, report = events_of([("u", "a", "2024-05-31"), ("u", "b", "soon"), ("u", "c", "2024-06-01")])
        assert report.dropped == {"interactions: timestamp is missing, unreadable or out of range": 1}

    def test_searches_have_a_query_and_no_item(self):
        rows = [("u", "a", START + 1, None), ("u", None, START, "red <b>lamp</b>"), ("u", None, START + 2, None)]
        events, report = events_of(rows, ("user_id", "item_id", "timestamp", "query"))
        assert events.items.tolist() == [-1, 0] and events.queries.tolist() == ["red lamp", ""]
        assert events.positive.tolist() == [False, True]
        assert report.dropped == {"interactions: item_id is missing, and there is no query": 1}

    def test_searches_alone_need_no_column_of_items(self):
        rows = [("u", START, "red lamp"), ("u", START + 1, "lamp")]
        named = ("user_id", "timestamp", "query")
        events, report = events_of(rows, named, require_targets=False)
        assert events.items.tolist() == [-1, -1] and events.queries.tolist() == ["red lamp", "lamp"]
        assert report.dropped == {}
        with pytest.raises(DataError, match="interactions holds searches alone; a fit needs events of items"):
            events_of(rows, named)
        # a query is lacking, or a column has a usual name: then the items are there under another name
        only_searches = "only a table of searches, with a query in each row, may go without"
        with pytest.raises(DataError, match=f"no column 'item_id'.*{only_searches}"):
            events_of([*rows, ("u", START + 2, None)], named, require_targets=False)
        with pytest.raises(DataError, match=r"columns=\{'sku': 'item_id'\}"):
            events_of([("u", START, "lamp", "a")], (*named, "sku"), require_targets=False)

    def test_optional_columns_reach_their_arrays_in_time_order(self):
        columns = ("user_id", "item_id", "timestamp", "event", "rating", "quantity", "weight", "review", "till")
        rows = [
            ("u", "b", START + 1, "rating", 2.0, None, None, "dull", "t1"),
            ("u", "a", START, "purchase", None, 3, 0.5, None, "t2"),
        ]
        events, _ = events_of(rows, columns, min_rating=3)
        assert events.items.tolist() == [0, 1] and events.weights.tolist() == [0.5, -1.0]
        assert events.positive.tolist() == [True, False] and events.quantities.tolist() == [3.0, 1.0]
        assert np.isnan(events.ratings[0]) and events.ratings[1] == 2.0
        assert events.reviews.tolist() == ["", "dull"]

    def test_returns_are_dropped_and_counted(self):
        rows = [("u", "a", START, 1), ("u", "a", START + 1, -1)]
        events, report = events_of(rows, ("user_id", "item_id", "timestamp", "quantity"))
        assert len(events) == 1 and report.dropped == {
            "interactions: purchase of a quantity of 0 or less (a return)": 1
        }

    def test_users_without_history_and_without_attributes_are_said(self):
        users = validate_users({"user_id": ["w", "u", "z"]})
        events, report = events_of([("u", "a", START), ("v", "b", START)], users=users)
        assert events.user_ids.tolist() == ["u", "v"] and events.user_rows.tolist() == [1, -1]
        assert "1 of 2 users with events have attributes; 2 users with attributes have no events" in report.notes
        assert any("no scorer of a fit reads them" in note for note in report.notes)

    def test_numbers_in_one_table_meet_texts_in_the_other(self):
        items = items_of(17, 5)
        events, report = events_of([("u", "17", START), ("u", "5", START), ("u", "x", START)], items=items)
        assert events.items.tolist() == [0, 1]
        assert report.dropped == {"interactions: item is absent from items": 1}

    def test_mixed_ids_in_one_column(self):
        report = DataReport()
        frame = pd.DataFrame(
            {"user_id": ["u", "u"], "item_id": pd.Series([71053, "85123A"], dtype=object), "timestamp": [1, 2]}
        )
        events = validate_interactions(frame, items_of("85123A", "71053"), report=report)
        assert events.items.tolist() == [1, 0]
        assert "item_id of interactions mixes numbers and texts; all its ids were taken as text" in report.notes

    def test_any_kind_of_table_and_no_change_of_it(self):
        rows = {
            "user_id": ["u", "v"],
            "item_id": ["b", "a"],
            "timestamp": [START + 1, START],
            "event": ["view", "click"],
        }
        expected = validate_interactions(pd.DataFrame(rows), items_of("a", "b"))
        frame = pd.DataFrame(rows, index=[9, 9])
        before = frame.copy(deep=True)
        for table in (frame, pl.DataFrame(rows), pa.table(rows), rows):
            events = validate_interactions(table, items_of("a", "b"))
            for name in EVENT_ARRAYS:
                np.testing.assert_array_equal(getattr(events, name), getattr(expected, name), err_msg=name)
        pd.testing.assert_frame_equal(frame, before)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "interactions has no rows; give at least one"),
            ([("u", "x", START)], "no item_id of interactions is in items .first: 'x', items has 'a'.; check"),
            ([(None, "a", START)], "interactions has no usable row .interactions: user_id is missing: 1"),
            ([("u", "a", "soon")], "no timestamp in interactions can be read .first: 'soon'"),
        ],
    )
    def test_nothing_left_is_an_error_for_a_fit(self, rows, message):
        with pytest.raises(DataError, match=message):
            events_of(rows)

    def test_a_history_may_hold_nothing_known(self):
        events, report = events_of([("u", "x", START)], require_targets=False)
        assert len(events) == 0 and events.n_users == 0
        assert report.dropped == {"interactions: item is absent from items": 1}

    def test_missing_columns_come_with_a_remedy(self):
        with pytest.raises(DataError, match=r"interactions has no column 'timestamp'.*columns=\{'date': 'timestamp'\}"):
            events_of([("u", "a", START)], ("user_id", "item_id", "date"))
        events, _ = events_of([("u", "a", START)], ("user_id", "item_id", "date"), columns={"date": "timestamp"})
        assert events.times.tolist() == [START]

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(
            st.tuples(st.sampled_from("uvw"), st.sampled_from(["a", "b", "c", "x", None]), st.integers(0, 5)),
            min_size=1,
            max_size=30,
        )
    )
    def test_kept_and_dropped_rows_add_up_and_come_back_in_order(self, rows):
        kept = [(user, item, time) for user, item, time in rows if item in ("a", "b", "c")]
        if not kept:
            return
        events, report = events_of(rows)
        assert len(events) + sum(report.dropped.values()) == len(rows)
        ids = np.array(["a", "b", "c"])
        back = list(zip(events.user_ids[events.users], ids[events.items], events.times, strict=True))
        assert back == sorted(kept, key=lambda row: row[2])  # sorted is stable: ties in input order


class TestImpressions:
    def test_codes_times_and_scores(self):
        report = DataReport()
        shown = validate_impressions(
            {
                "user_id": [2, 1, 1, 1],
                "item_id": ["b", "a", "x", "c"],
                "timestamp": [START + 1, START, START, None],
                "upstream_score": [0.5, None, 1.0, 1.0],
            },
            items_of("a", "b", "c"),
            report=report,
        )
        assert shown.columns.tolist() == ["user_id", "item", "time", "list", "upstream_score"]
        assert shown["user_id"].tolist() == [1, 2] and shown["item"].tolist() == [0, 1]
        assert shown["time"].tolist() == [START, START + 1]
        assert shown.attrs["unknown_items"] == 0.25
        assert shown["time"].dtype == shown["item"].dtype == np.int64 and shown["upstream_score"].dtype == np.float32
        assert report.dropped == {
            "impressions: item is absent from items": 1,
            "impressions: timestamp is missing, unreadable or out of range": 1,
        }

    @pytest.mark.parametrize("with_ids", [True, False])
    def test_a_list_is_what_list_id_says_and_else_the_rows_of_a_user_at_one_time(self, with_ids):
        rows = [  # user, item, second, list_id
            (1, "a", 5, "x"), (1, "b", 3, "x"), (1, "c", 3, "y"), (2, "a", 3, "x"),
            (1, "a", 9, None), (1, "b", 9, None), (1, "c", 8, ""),
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "list_id"])
        table["timestamp"] += START
        shown = validate_impressions(table if with_ids else table.drop(columns="list_id"), items_of("a", "b", "c"))
        found = [
            (part["user_id"].iloc[0], (part["time"] - START).unique().tolist(), part["item"].tolist())
            for _, part in shown.groupby("list")
        ]
        # a list is as old as its first row, and its rows stand as they were shown
        if with_ids:
            wanted = [(1, [3], [1, 0]), (1, [3], [2]), (2, [3], [0]), (1, [8], [2]), (1, [9], [0, 1])]
        else:
            wanted = [(1, [3], [1, 2]), (2, [3], [0]), (1, [5], [0]), (1, [8], [2]), (1, [9], [0, 1])]
        assert sorted(found) == sorted(wanted)
        assert shown["time"].is_monotonic_increasing and shown["list"].dtype == np.int64

    def test_an_item_that_comes_again_is_told_within_a_list_alone(self):
        table = {"user_id": [1, 1, 1], "item_id": ["a", "a", "b"], "timestamp": [START, START + 60, START]}
        report = DataReport()
        validate_impressions(table, items_of("a", "b"), report=report)
        assert not any("repeat" in note for note in report.notes)
        validate_impressions({**table, "list_id": [7, 7, 7]}, items_of("a", "b"), report=report)
        assert report.notes[-1] == (
            "1 rows of impressions repeat an item of their list (one user with one list_id); the first of them counts"
        )
        validate_impressions({**table, "timestamp": [START] * 3}, items_of("a", "b"), report=report)
        assert "an item of their list (one user at one time)" in report.notes[-1]

    def test_a_log_that_stamps_each_row_is_told_the_remedy(self):
        table = {"user_id": [1] * 4, "item_id": ["a", "b", "a", "b"], "timestamp": [START + step for step in range(4)]}
        for more, wanted in (
            ({}, ["4 of 4 lists of impressions have a single item: a list is the rows of one user at one time; give "
                  "all rows of a list that, or a list_id"]),
            ({"list_id": [1, 1, 2, 2]}, []),
            ({"list_id": [1, 2, 3, 3]}, ["2 of 3 lists of impressions have a single item: a list is the rows of one "
                                         "user with one list_id; give all rows of a list the same"]),
            ({"list_id": [1, 2, 2, 2]}, []),
            ({"timestamp": [START, START, START + 1, START + 1]}, []),
        ):  # fmt: skip
            report = DataReport()
            validate_impressions({**table, **more}, items_of("a", "b"), report=report)
            assert report.advice == wanted
