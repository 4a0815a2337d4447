from __future__ import annotations

import datetime
import decimal
import json
import uuid

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_rerank.data.frames import applicable, as_objects, clean_ids, id_codes, like_input, named_columns, to_pandas
from llm_rerank.data.id_index import code_of, codes_by_id, known_id
from llm_rerank.types import DataError, DataReport

ROWS = {"user_id": ["u1", "u2"], "price": [1.5, None]}


@pytest.mark.parametrize(
    "make",
    [
        pd.DataFrame,
        pl.DataFrame,
        pl.LazyFrame,
        pa.table,
        dict,
        lambda rows: pd.DataFrame(rows, index=[7, 7]),
        lambda rows: pd.DataFrame(rows).convert_dtypes(dtype_backend="pyarrow"),
        lambda rows: [{"user_id": "u1", "price": 1.5}, {"user_id": "u2", "price": None}],
    ],
)
def test_any_table_becomes_the_same_pandas_frame(make):
    frame = to_pandas(make(ROWS))
    assert frame.index.tolist() == [0, 1] and frame["user_id"].tolist() == ["u1", "u2"]
    assert frame["price"].dtype == np.float64 and frame["price"].iloc[0] == 1.5 and np.isnan(frame["price"].iloc[1])


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.table])
def test_the_same_kind_comes_out(make):
    original = make(ROWS)
    result = like_input(pd.DataFrame({"user_id": ["u1"], "score": [0.5]}), original)
    assert type(result) is type(original)
    back = to_pandas(result)
    assert back["user_id"].tolist() == ["u1"] and back["score"].tolist() == [0.5]


def test_a_path_and_a_mapping_give_pandas_out(tmp_path):
    assert isinstance(like_input(pd.DataFrame(ROWS), str(tmp_path)), pd.DataFrame)
    assert isinstance(like_input(pd.DataFrame(ROWS), ROWS), pd.DataFrame)


@pytest.mark.parametrize("table", [7, [1, 2], None, object()])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(DataError, match="table is of type .*; pass a path, or a pandas, polars or Arrow table"):
        to_pandas(table)


@pytest.mark.parametrize("mixed", [[1, "z"], [["A", "B"], "C"], [{"a": 1}, {"a": "x"}]])
def test_a_column_of_several_kinds_stays_beside_one_of_arrow(mixed):
    own = pd.Series(mixed, dtype=object)
    given = pd.DataFrame({"mixed": own, 7: pd.array([GREAT, None], dtype=pd.ArrowDtype(pa.int64())), "n": [1, 2]})
    frame = to_pandas(given)
    assert frame.columns.tolist() == ["mixed", 7, "n"] and frame["mixed"].tolist() == mixed
    assert frame[7].dtype == object and frame[7][0] == GREAT and frame["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"user_id": ["u", "v"], "item_id": ["a"]}, "same length"),
        ({"user_id": "u", "item_id": "a"}, "scalar values"),
        ({"user_id": {"u"}, "item_id": {"a"}}, "unordered"),
    ],
)
def test_columns_that_are_no_lists_of_one_length_are_refused(table, said):
    message = rf"with the columns \['user_id', 'item_id'\] is no table \(.*{said}.*\); give a list for each column"
    with pytest.raises(DataError, match=message):
        to_pandas(table)


HALF = "half \ud83d"
MARKED = "half \ufffd"


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: [{"id": value, HALF: GREAT} for value in rows],
        lambda rows: {"id": rows, HALF: [GREAT, None, None]},
        lambda rows: {"id": np.array(rows), HALF: GREAT},
        lambda rows: pd.DataFrame({"id": pd.Series(rows, dtype=object), MARKED: GREAT}),
        lambda rows: pd.DataFrame({"id": pd.Categorical(pd.Series(rows, dtype=object)), MARKED: GREAT}),
        lambda rows: pd.DataFrame({"id": pd.Series(rows, dtype="string[python]"), MARKED: GREAT}),
    ],
)
def test_half_an_emoji_is_marked_whatever_the_table(make):
    frame = to_pandas(make(["a", HALF, "whole \ud83d\ude00"]))
    assert frame["id"].tolist() == ["a", MARKED, "whole 😀"] and frame[MARKED][0] == GREAT


def test_half_an_emoji_in_a_file_is_marked(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"title": "half \\ud83d", "n": 1}\n{"title": null, "n": 2}\n')
    frame = to_pandas(tmp_path / "items.jsonl")
    assert frame["title"][0] == MARKED and frame["n"].tolist() == [1, 2]


def test_an_id_with_half_an_emoji_is_found_as_it_was_read():
    known = as_objects(to_pandas([{"user_id": HALF}])["user_id"])
    assert code_of(HALF, codes_by_id(known)) == 0 and known_id(HALF, codes_by_id(known)) == MARKED


def test_repeated_columns_are_refused():
    with pytest.raises(DataError, match=r"columns \['a'\] more than once; rename"):
        to_pandas(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_columns_are_mapped_and_the_input_stays():
    frame = pd.DataFrame({"customer": [1], "user_id": ["own"], "other": [3]})
    report = DataReport()
    named = named_columns(frame, "orders", ("user_id",), {"customer": "user_id"}, report)
    assert named.columns.tolist() == ["user_id", "other"] and named["user_id"].tolist() == [1]
    assert report.notes == ["orders: column 'user_id' gives way to the column mapped to it"]
    assert frame.columns.tolist() == ["customer", "user_id", "other"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, r"orders has no column 'user_id'; it has customer, x.*columns=\{'customer': 'user_id'\}"),
        ({"client": "user_id"}, "orders has no column 'client' to map to 'user_id'; it has customer, x"),
        ({"customer": "user_id", "x": "user_id"}, "maps more than one column of orders to 'user_id'; map one"),
    ],
)
def test_missing_columns_come_with_a_remedy(columns, message):
    with pytest.raises(DataError, match=message):
        named_columns(pd.DataFrame({"customer": [1], "x": [2]}), "orders", ("user_id",), columns, DataReport())


def test_one_mapping_serves_several_tables():
    columns = {"customer": "user_id", "sku": "item_id"}
    assert applicable(columns, pd.DataFrame({"sku": [1]})) == {"sku": "item_id"}
    assert applicable(None, pd.DataFrame({"sku": [1]})) == {}


def ids_of(values):
    report = DataReport()
    cleaned = clean_ids(pd.Series(values), "item_id of items", report)
    return [None if pd.isna(value) else value for value in cleaned], report.notes


def test_ids_stay_as_they_came():
    for values in (["007", "7"], [7, 8], [1.5, 2.5]):
        series = pd.Series(values, dtype=object)
        assert ids_of(series) == (values, [])


def test_ids_that_no_file_keeps_become_text_or_whole_numbers_or_are_refused():
    one = uuid.uuid4()
    assert ids_of([one, None])[0] == [str(one), None]
    assert ids_of([decimal.Decimal("17"), decimal.Decimal("4")])[0] == [17, 4]
    assert ids_of([decimal.Decimal("1.50"), None])[0] == ["1.50", None]
    assert ids_of([datetime.date(2024, 5, 31)])[0] == ["2024-05-31"]
    assert ids_of(pd.to_datetime(["2024-05-31 10:00"]))[0] == ["2024-05-31 10:00:00"]
    assert "holds ids of type UUID" in ids_of([one])[1][0]
    for truth in ([True, False], [True, None]):
        with pytest.raises(DataError, match="item_id of items holds True; an id must be"):
            ids_of(truth)
    for foreign in (("a", 1), b"a", 1j):
        with pytest.raises(DataError, match="item_id of items holds .* of type .*; an id must be one number or text"):
            ids_of(pd.Series([foreign, foreign, "x"], dtype=object))


def test_ids_asked_for_as_uuids_are_the_texts_that_they_were_read_as():
    one, other = uuid.uuid4(), uuid.uuid4()
    known = as_objects(pd.Series([str(other), str(one)]))
    assert id_codes(pd.Series([one, "x", None], dtype=object), known).tolist() == [1, -1, -1]
    assert code_of(one, codes_by_id(known)) == 1
    assert known_id(one, codes_by_id(known)) == str(one)


def test_whole_floats_are_whole_again_and_blanks_are_missing():
    cleaned, _ = ids_of([17850.0, np.nan])
    assert cleaned == [17850, None] and str(cleaned[0]) == "17850"
    assert ids_of(["a", "", "  ", None])[0] == ["a", None, None, None]
    assert ids_of(pd.Series(["b", "b", None]).astype("category"))[0] == ["b", "b", None]
    assert ids_of(pd.Series(pd.Categorical([GREAT, None, 5])))[0] == [GREAT, None, 5]


def test_mixed_ids_become_text_unless_two_would_merge():
    cleaned, notes = ids_of(pd.Series([71053, "85123A", 12.0, None], dtype=object))
    assert cleaned == ["71053", "85123A", "12", None]
    assert notes == ["item_id of items mixes numbers and texts; all its ids were taken as text"]
    with pytest.raises(
        DataError, match="item_id of items mixes numbers and texts, and 1 and '1' would be one id; write"
    ):
        ids_of(pd.Series([1, "1"], dtype=object))
    with pytest.raises(DataError, match=r"and (\d+) and '\1' would be one id"):
        ids_of(pd.Series([30, 39, "39", "30"], dtype=object))


def test_lists_are_no_ids():
    with pytest.raises(DataError, match="item_id of items holds lists or mappings; an id must be one number or text"):
        ids_of(pd.Series([["a"], ["b"]], dtype=object))


def test_codes_of_ids():
    known = as_objects(pd.Series(["a", "b", "c"]))
    assert id_codes(pd.Series(["c", None, "x", "a", "c"]), known).tolist() == [2, -1, -1, 0, 2]
    assert id_codes(pd.Series([], dtype=object), known).tolist() == []
    assert id_codes(as_objects(pd.Series(["a"])), np.empty(0, dtype=object)).tolist() == [-1]


def test_numbers_and_texts_meet_as_text():
    numbers, texts = as_objects(pd.Series([17, 5])), as_objects(pd.Series(["17", "005"]))
    assert id_codes(pd.Series(["5", "17", "017"]), numbers).tolist() == [1, 0, -1]
    assert id_codes(pd.Series([17, 5]), texts).tolist() == [0, -1]
    assert id_codes(pd.Series([17.0, np.nan]), numbers).tolist() == [0, -1]
    assert as_objects(pd.Series([17, 5]))[0].__class__ is int


def test_each_id_is_found_for_itself_whatever_stands_beside_it():
    """A catalogue of numbers to which one text was added, and columns of one kind or of both."""
    known = as_objects(pd.Series([100, 101, 7, "sku-9", "5"], dtype=object))
    for column in (["100", "101"], [100, 101], [100.0, 101.0], ["100", 101], [np.int64(100), np.float32(101)]):
        assert id_codes(pd.Series(column, dtype=object), known).tolist() == [0, 1], column
    assert id_codes(pd.Series(["7", "sku-9", 5, "05", None], dtype=object), known).tolist() == [2, 3, 4, -1, -1]
    both = as_objects(pd.Series([1, "1"], dtype=object))
    assert id_codes(pd.Series(["1", 1, 1.0], dtype=object), both).tolist() == [1, 0, 0]
    assert id_codes(pd.Series([1.5, np.inf, 2.5]), as_objects(pd.Series([2.5, 3.0]))).tolist() == [-1, -1, 0]


GREAT = 2**53 + 1


@pytest.fixture
def kept(tmp_path):
    """Writes columns to a file of a form, and gives its path."""

    def write(form, columns):
        path, table = tmp_path / "table", pa.table(columns)
        if form == "parquet":
            pq.write_table(table, path)
        else:
            rows = [json.dumps(row) for row in table.to_pylist()]
            path.write_text("\n".join(rows) if form == "lines" else f"[{', '.join(rows)}]")
        return path

    return write


MAKES = {
    "polars": pl.DataFrame,
    "arrow": pa.table,
    "pandas over arrow": lambda rows: pd.DataFrame(
        {name: pd.array(column, dtype="int64[pyarrow]") for name, column in rows.items()}
    ),
    "mapping": dict,
    "rows": lambda rows: pa.table(rows).to_pylist(),
}


@pytest.mark.parametrize("form", [*MAKES, "parquet", "lines", "list"])
def test_great_whole_numbers_stay_whole_beside_a_missing_one(form, kept):
    rows = {"user_id": [GREAT - 1, GREAT, None], "order": [None, -GREAT, 3], "n": [1, None, 2]}
    frame = to_pandas(MAKES[form](rows) if form in MAKES else kept(form, rows))
    users = clean_ids(frame["user_id"], "user_id", DataReport())
    assert users.tolist()[:2] == [GREAT - 1, GREAT] and users.isna().tolist() == [False, False, True]
    assert frame["order"][1] == -GREAT
    assert frame["n"].dtype == np.float64  # small ones are floats, as ever


HUGE = 2**63 + 5


@pytest.mark.parametrize("form", ["polars", "arrow", "mapping", "rows", "parquet", "lines", "list"])
def test_ids_from_2_to_the_63rd_on_stay_whole(form, kept):
    for column in ([HUGE, None, 2**64 - 1], [HUGE, 7, 2**64 - 1]):
        rows = {"user_id": column if form in ("polars", "mapping") else pa.array(column, pa.uint64())}
        frame = to_pandas(MAKES[form](rows) if form in MAKES else kept(form, rows))
        users = clean_ids(frame["user_id"], "user_id", DataReport())
        assert [None if pd.isna(user) else user for user in users] == column


@pytest.mark.parametrize("values", [[HUGE, -1], [2**64, None], [10**400, 7], [1.0, 10**400], [np.uint64(HUGE), -1]])
def test_ids_that_no_column_of_whole_numbers_holds_are_refused(values):
    with pytest.raises(DataError, match=r"item_id of items holds whole numbers from .* to .*2\^64; bring them as text"):
        ids_of(pd.Series(values, dtype=object))


@pytest.mark.parametrize("make", [pl.DataFrame, pa.table])
def test_whole_numbers_beside_candidates_come_out_in_a_type_that_the_table_has(make):
    held = pd.DataFrame({"order": [HUGE, None], "huge": [HUGE, -1], "row": [GREAT, None]}, dtype=object)
    back = to_pandas(like_input(held, make(ROWS)))
    assert (back["order"][0], back["row"][0], *back["huge"]) == (HUGE, GREAT, str(HUGE), "-1")
    assert back[["order", "row"]].loc[1].isna().all()


@pytest.mark.parametrize(("kind", "bits"), [(np.float16, 11), (np.float32, 24), ("Float32", 24), (np.longdouble, 53)])
def test_ids_that_narrow_floats_have_rounded_are_refused(kind, bits):
    assert ids_of(pd.Series([2**bits - 1, 3], dtype=kind))[0] == [2**bits - 1, 3]
    with pytest.raises(DataError, match=rf"holds {2**bits} as a float: ids beyond 2\^{bits} came as floats"):
        ids_of(pd.Series([2**bits, 3], dtype=kind))


@pytest.mark.parametrize("values", [[float(GREAT), None], [1.0, -(2.0**60)], pd.Series([2.0**53, 1], dtype=object)])
def test_ids_that_floats_have_rounded_are_refused(values):
    message = r"item_id of items holds -?\d+ as a float: ids beyond 2\^53 came as floats, which rounds them; bring"
    with pytest.raises(DataError, match=message):
        ids_of(values)
    assert ids_of([2.0**53 - 1, None])[0] == [2**53 - 1, None]  # every whole number up to there has a float of its own
