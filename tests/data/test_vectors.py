"""Columns of vectors at the door: what is read, what is missing, and what is refused with its remedy."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llm_rerank.data.rendering import Renderer
from llm_rerank.data.schema import validate_items
from llm_rerank.data.vectors import is_vector_name, merged_vectors
from llm_rerank.types import DataError, DataReport

ROOT = float(np.sqrt(0.5))
CELLS = [[3.0, 4.0], None, [0, -2], [5.0, 5.0]]
UNIT = [[0.6, 0.8], [0, 0], [0, -1], [ROOT, ROOT]]
"""[3, 4] has length 5, [5, 5] length 5 √2."""


def table(cells, name="image_vector"):
    return pd.DataFrame(
        {"item_id": list("abcdefgh")[: len(cells)], "title": "a lamp", name: pd.Series(cells, dtype=object)}
    )


def as_parquet(frame, path):
    frame.to_parquet(path / "items.parquet")
    return path / "items.parquet"


def as_json_lines(frame, path):
    rows = [{name: value for name, value in row.items() if value is not None} for row in frame.to_dict("records")]
    (path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / "items.jsonl"


FORMS = {
    "lists": lambda frame, path: frame,
    "arrays": lambda frame, path: frame.assign(
        image_vector=[None if cell is None else np.array(cell, dtype=np.float16) for cell in frame["image_vector"]]
    ),
    "nan where none": lambda frame, path: frame.assign(
        image_vector=[np.nan if cell is None else tuple(cell) for cell in frame["image_vector"]]
    ),
    "rows": lambda frame, path: [
        {name: value for name, value in row.items() if value is not None} for row in frame.to_dict("records")
    ],
    "columns": lambda frame, path: {name: frame[name].tolist() for name in frame},
    "polars": lambda frame, path: pl.DataFrame({name: frame[name].tolist() for name in frame}, strict=False),
    "arrow": lambda frame, path: pa.table(
        {
            "item_id": frame["item_id"].tolist(),
            "title": frame["title"].tolist(),
            "image_vector": pa.array(frame["image_vector"].tolist(), type=pa.list_(pa.float32(), 2)),
        }
    ),
    "pandas over arrow": lambda frame, path: pa.Table.from_pandas(frame).to_pandas(types_mapper=pd.ArrowDtype),
    "parquet": as_parquet,
    "json lines": as_json_lines,
}


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_any_table_are_read_as_directions(form, tmp_path):
    report = DataReport()
    items = validate_items(FORMS[form](table(CELLS), tmp_path), report=report)
    assert list(items.vectors) == ["image_vector"]
    rows = items.vectors["image_vector"]
    assert rows.dtype == np.float32 and rows.shape == (4, 2)
    np.testing.assert_allclose(rows, UNIT, atol=1e-7)
    assert "items: image_vector: 3 of 4 have one, of 2 numbers" in report.notes


def test_pictures_without_vectors_are_said_to_be_unread():
    def notes(**columns):
        report = DataReport()
        validate_items(table(CELLS).drop(columns="image_vector").assign(**columns), report=report)
        return [note for note in report.notes if "column image" in note]

    said = ["column image of items is kept but read by no scorer: give vectors (docs/media.md)"]
    some = ["", None, "b.jpg", ""]
    assert notes(image=some) == notes(image=some, image_vector=None) == said
    assert notes(image=some, sound_vector=CELLS) == notes(image=["", None, "", ""]) == notes() == []


def test_vectors_are_no_text_and_no_other_column():
    items = validate_items(table(CELLS).assign(colour="red"))
    assert "image_vector" not in items.frame
    plain = validate_items(table(CELLS).drop(columns="image_vector").assign(colour="red"))
    pd.testing.assert_frame_equal(items.frame, plain.frame)
    texts = Renderer().render_items(items).texts
    assert list(texts) == list(Renderer().render_items(plain).texts)
    assert not any("vector" in text or "0.6" in text or "3.0" in text for text in texts)
    assert plain.vectors == {}


def test_a_shops_own_name_and_several_columns():
    given = table(CELLS, "clip").assign(sound_vector=[[1.0], None, None, [-3.0]])
    items = validate_items(given, columns={"clip": "image_vector"})
    assert list(items.vectors) == ["image_vector", "sound_vector"]
    np.testing.assert_array_equal(items.vectors["sound_vector"], [[1], [0], [0], [-1]])


def test_beside_a_published_layout():
    given = table(CELLS).rename(columns={"item_id": "parent_asin"})
    np.testing.assert_allclose(validate_items(given).vectors["image_vector"], UNIT, atol=1e-7)


def test_rows_that_are_dropped_take_their_vectors_along():
    given = table([*CELLS, [1.0, 0.0]])
    given.loc[0, "item_id"] = None
    given.loc[4, "item_id"] = "d"
    np.testing.assert_allclose(validate_items(given).vectors["image_vector"], UNIT[1:], atol=1e-7)


def test_no_vector_at_all_is_a_column_without_use():
    for cells in ([None, None], [np.nan, np.nan], [[], None]):
        report = DataReport()
        items = validate_items(table(cells), report=report)
        assert items.vectors == {} and "image_vector" not in items.frame
        assert "items: image_vector has no vector in any row; left out" in report.notes


def test_an_empty_list_and_zeros_are_no_vector():
    rows = validate_items(table([[], [0, 0], [0, 7]])).vectors["image_vector"]
    np.testing.assert_array_equal(rows, [[0, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300, 2**53])
def test_no_size_is_too_great_or_too_small(scale):
    rows = validate_items(table([[3 * scale, 4 * scale], [0, -scale]])).vectors["image_vector"]
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, -1]], atol=1e-7)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], "has 3 numbers for item 'b' and 2 for item 'a'"),
        ([[1.0, 2.0], "[1.0, 2.0]"], r"holds '\[1.0, 2.0\]' for item 'b'"),
        (["0.5;0.5", None], "holds '0.5;0.5' for item 'a'"),
        ([0.5, 0.7], "holds 0.5 for item 'a'"),
        ([[1.0, 2.0], {"x": 1.0, "y": 2.0}], "holds {'x': 1.0, 'y': 2.0} for item 'b'"),
        ([[1.0, 2.0], [1.0, "2"]], "holds '2' in the vector of item 'b'"),
        ([[1.0, None], [1.0, 2.0]], "holds None in the vector of item 'a'"),
        ([[True, False]], "holds True in the vector of item 'a'"),
        ([[1.0, 2.0], [[1.0, 2.0]]], r"holds \[\[1.0, 2.0\]\] for item 'b'"),
        ([[[1.0], [1.0, 2.0]]], r"holds \[\[1.0\], \[1.0, 2.0\]\] for item 'a'"),
        ([[1.0, 2j]], r"holds 2j in the vector of item 'a'"),
    ],
)
def test_what_is_no_vector_is_refused_with_item_value_rule_and_remedy(cells, said):
    with pytest.raises(
        DataError, match=f"items column 'image_vector' {said}; cells of a column .* or rename the column"
    ):
        validate_items(table(cells))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite(value):
    with pytest.raises(DataError, match=f"holds {value} in the vector of item 'b'; its numbers must be finite: leave"):
        validate_items(table([[1.0, 2.0], [1.0, value]]))


@pytest.mark.parametrize("name", ["_vector", "../x_vector", "a b_vector", "x" * 61 + "_vector", "a/b_vector"])
def test_a_name_that_no_folder_should_have(name):
    assert not is_vector_name(name)
    with pytest.raises(DataError, match="letters, digits and _ .* rename it, for example to image_vector"):
        validate_items(table(CELLS, name))


@pytest.mark.parametrize("name", ["image_vector", "画像_vector", "clip_512_vector"])
def test_names(name):
    assert is_vector_name(name)
    assert list(validate_items(table(CELLS, name)).vectors) == [name]


def test_merged():
    old = {"a_vector": np.array([[1, 0], [0, 1]], dtype=np.float32), "b_vector": np.ones((2, 1), dtype=np.float32)}
    arrived = {
        "a_vector": np.array([[0, 1], [0, -1], [0, 0]], dtype=np.float32),
        "c_vector": np.array([[0], [1], [0]], dtype=np.float32),
    }
    given = {"a_vector": np.array([True, True, False]), "c_vector": np.array([False, True, False])}
    # arrived rows are item 1 (as it was), the new item 2, and item 0 (missing: keeps what it had)
    merged, changed = merged_vectors(old, arrived, given, np.array([1, 2, 0]), 3)
    np.testing.assert_array_equal(merged["a_vector"], [[1, 0], [0, 1], [0, -1]])
    np.testing.assert_array_equal(merged["b_vector"], [[1], [1], [0]])
    np.testing.assert_array_equal(merged["c_vector"], [[0], [0], [1]])
    assert changed.tolist() == [False, False, True]
    assert old["a_vector"].shape == (2, 2)
    with pytest.raises(DataError, match="has vectors of 2 numbers, those known have 1; make them with the same model"):
        merged_vectors({"a_vector": np.ones((2, 1), np.float32)}, arrived, given, np.array([1, 2, 0]), 3)
