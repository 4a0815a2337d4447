from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.candidates import validate_candidates
from llm_rerank.data.schema import validate_items
from llm_rerank.types import DataError, DataReport

ITEMS = validate_items(pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]}))


def read(table, **settings):
    report = DataReport()
    return validate_candidates(table, ITEMS, report=report, **settings), report


def test_rows_keep_their_order_and_their_columns():
    given = pd.DataFrame(
        {"user_id": [7, 7, 3], "item_id": ["c", "x", "a"], "upstream_score": [0.5, None, 2], "slot": list("rst")}
    )
    before = given.copy()
    table, report = read(given)
    assert table.item_codes.tolist() == [2, -1, 0] and table.user_ids.tolist() == [7, 7, 3] and len(table) == 3
    np.testing.assert_array_equal(table.upstream_scores, np.array([0.5, np.nan, 2], dtype=np.float32))
    pd.testing.assert_frame_equal(table.frame, given)
    pd.testing.assert_frame_equal(given, before)
    assert report.dropped == {} and report.notes[0].startswith("candidates has 1 items absent from items (first: 'x')")


def test_unknown_items_can_be_dropped_or_refused():
    given = {"user_id": [1, 1, 2], "item_id": ["x", "a", "x"]}
    table, report = read(given, on_unknown="drop")
    assert table.item_codes.tolist() == [0] and table.frame.index.tolist() == [0]
    assert report.dropped == {"candidates: item is absent from items": 2}
    with pytest.raises(
        DataError, match="candidates has 1 items absent from items .first: 'x'.; add them to items or pass"
    ):
        read(given, on_unknown="raise")
    with pytest.raises(DataError, match=r"absent from items \(first: 99\)"):
        read({"user_id": [1], "item_id": [99]}, on_unknown="raise")
    with pytest.raises(DataError, match="on_unknown is 'skip'; it must be 'keep', 'drop' or 'raise'"):
        read(given, on_unknown="skip")


def test_rows_without_user_or_item_are_counted_and_repeats_are_said():
    table, report = read({"user_id": ["u", None, "u", "u"], "item_id": ["a", "b", "", "a"]})
    assert table.item_codes.tolist() == [0, 0]
    assert report.dropped == {"candidates: user_id or item_id is missing": 2}
    assert report.notes == ["candidates repeats 1 pairs of user and item; every row is kept"]


def test_half_an_emoji_in_ids_and_further_columns_is_marked():
    broken = pd.Series(["a", "half \ud83d"], dtype=object)
    table, _ = read(pd.DataFrame({"user_id": broken, "item_id": broken, "slot": broken}))
    assert table.user_ids.tolist() == table.frame["slot"].tolist() == ["a", "half \ufffd"]
    assert table.item_codes.tolist() == [0, -1]


def test_no_candidates_are_an_empty_answer():
    table, report = read(pd.DataFrame({"user_id": [], "item_id": []}))
    assert len(table) == 0 and table.item_codes.dtype == np.int64 and table.upstream_scores.dtype == np.float32
    assert report.notes == ["candidates has no rows; the result will have none"]
    assert len(read(pd.DataFrame(columns=["user_id", "item_id", "upstream_score"]))[0]) == 0


def test_columns_are_mapped_and_missing_ones_named():
    table, _ = read({"customer": ["u"], "sku": ["b"]}, columns={"customer": "user_id", "sku": "item_id"})
    assert table.frame.columns.tolist() == ["user_id", "item_id"] and table.item_codes.tolist() == [1]
    with pytest.raises(DataError, match="candidates has no column 'user_id'"):
        read({"customer": ["u"], "item_id": ["b"]})


def test_upstream_scores_that_are_no_numbers():
    table, report = read({"user_id": ["u", "u"], "item_id": ["a", "b"], "upstream_score": ["0.5", "high"]})
    np.testing.assert_array_equal(table.upstream_scores, np.array([0.5, np.nan], dtype=np.float32))
    assert report.notes == ["1 values of upstream_score are no finite numbers; taken as unknown"]
    with pytest.raises(DataError, match="upstream_score of candidates holds no number .first: 'high'.; give numbers"):
        read({"user_id": ["u"], "item_id": ["a"], "upstream_score": ["high"]})


def test_scores_beyond_float32_are_unknown():
    table, report = read(
        pd.DataFrame({"user_id": 1, "item_id": ["a", "b", "c"], "upstream_score": [1e300, -1e39, 2.0]})
    )
    np.testing.assert_array_equal(table.upstream_scores, np.array([np.nan, np.nan, 2.0], dtype=np.float32))
    rows = [{"user_id": 1, "item_id": "a", "upstream_score": score} for score in (10**400, "-2")]
    np.testing.assert_array_equal(read(rows)[0].upstream_scores, [np.nan, -2.0])
    assert any("2 values of upstream_score are no finite numbers" in note for note in report.notes)


def test_an_empty_sequence_is_an_empty_answer_and_an_index_is_named():
    table, report = read(pd.DataFrame([]))
    assert len(table) == 0 and any("no rows" in note for note in report.notes)
    with pytest.raises(DataError, match=r"call reset_index\(\) first"):
        read(pd.DataFrame({"user_id": [1], "item_id": ["a"]}).set_index(["user_id", "item_id"]))
