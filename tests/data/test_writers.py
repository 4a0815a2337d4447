"""Results to files: by suffix, whole or not at all."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.readers import read_table
from llm_rerank.data.writers import SUFFIXES, check_output, write_table
from llm_rerank.types import DataError, StorageError

FRAME = pd.DataFrame(
    {"user_id": ["a", "b"], "title": ['tab\t, comma and "quotes"', "日本\nline"], "score": [0.5, None]}
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, suffix):
    write_table(FRAME.set_index(pd.Index([7, 9])), tmp_path / f"out{suffix}")
    read = read_table(tmp_path / f"out{suffix}")
    pd.testing.assert_frame_equal(read.astype({"score": float}), FRAME, check_dtype=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".jsonl.gz"])
def test_numbers_and_times_are_written_exactly(tmp_path, suffix):
    moments = pd.to_datetime(["2024-05-31 18:00:00.123456", None])
    values = {"probability": [1.23456789012e-11, 0.1234567890123456], "n": [2**60 + 1, -1], "at": moments}
    frame = pd.DataFrame({**values, "p": [1e-05, 0.5]})
    write_table(frame, tmp_path / f"out{suffix}")
    read = read_table(tmp_path / f"out{suffix}")
    assert read["probability"].tolist() == values["probability"] and read["p"].tolist() == [1e-05, 0.5]
    # 19 digits of a CSV may be an id, and stay text
    assert read["n"].astype(object).map(int).tolist() == values["n"] and pd.to_datetime(read["at"]).equals(frame["at"])


def test_json_lines_hold_what_json_has(tmp_path):
    rows = [
        {"n": 1, "day": pd.Timestamp("2024-05-31", tz="UTC"), "price": Decimal("1.50"), "parts": np.inf},
        {"n": None, "day": pd.NaT, "price": None, "parts": {"x": (1, np.float32(0.5))}},
    ]
    write_table(pd.DataFrame(rows), tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        {"n": 1, "day": "2024-05-31T00:00:00+00:00", "price": "1.50", "parts": None},
        {"n": None, "day": None, "price": None, "parts": {"x": [1, 0.5]}},
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_files_refuse_is_written_in_a_form_that_they_keep(tmp_path, suffix):
    held = {"title": ["half \ud83d", "b"], "order": [2**64 - 1, None], "huge": [2**64, -1]}
    write_table(pd.DataFrame(held, dtype=object), tmp_path / f"out{suffix}")
    read = read_table(tmp_path / f"out{suffix}").astype(object)
    assert read["title"].tolist() == ["half \ufffd", "b"] and pd.isna(read["order"][1])
    assert int(read["order"][0]) == 2**64 - 1 and read["huge"].map(int).tolist() == [2**64, -1]
    nested = pd.DataFrame({"tags": [["half \ud83d"]]})
    write_table(nested, tmp_path / "nested.jsonl")
    assert json.loads((tmp_path / "nested.jsonl").read_text(encoding="utf-8")) == {"tags": ["half \ufffd"]}


def test_packed_files_are_packed(tmp_path):
    write_table(FRAME, tmp_path / "out.csv.gz")
    assert (tmp_path / "out.csv.gz").read_bytes()[:2] == b"\x1f\x8b"


class Unwritable:
    def __str__(self) -> str:
        raise ValueError("half-way")


@pytest.mark.parametrize(("name", "error"), [("out.csv", ValueError), ("out.parquet", StorageError)])
def test_a_write_that_fails_leaves_the_earlier_file(tmp_path, name, error):
    write_table(FRAME, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    bad = pd.DataFrame({"sku": pd.Series(["a", 1, Unwritable()], dtype=object)})
    with pytest.raises(error, match="half-way|sku"):
        write_table(bad, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"list.xls has no known suffix; end it with one of .csv"):
        check_output(tmp_path / "list.xls")
    with pytest.raises(DataError, match="make .*no first"):
        check_output(tmp_path / "no" / "list.csv")
    (tmp_path / "list.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        check_output(tmp_path / "list.csv")
    assert check_output(str(tmp_path / "LIST.CSV.GZ")).name == "LIST.CSV.GZ"
