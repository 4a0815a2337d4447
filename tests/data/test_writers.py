"""Results to files: by suffix, whole or not at all."""

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
