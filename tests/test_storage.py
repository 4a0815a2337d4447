"""Storage: what is written comes back, damage is named, and a failed write leaves the earlier file."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix

from llm_rerank import storage
from llm_rerank.types import StorageError


@given(
    hnp.arrays(
        dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    storage.write_arrays(path, {"a": array})
    arrays, metadata = storage.read_arrays(path)
    assert metadata == {}
    assert arrays["a"].dtype == array.dtype
    assert arrays["a"].shape == array.shape
    assert arrays["a"].tobytes() == array.tobytes()  # NaN payloads included


@pytest.mark.parametrize(
    "view",
    [
        np.arange(12).reshape(3, 4).T,
        np.arange(12)[::2],
        np.arange(12)[::-1],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12, dtype=">i4"),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "big-endian"],
)
def test_array_that_is_not_plain_memory_keeps_its_values(tmp_path, view):
    storage.write_arrays(tmp_path / "a.safetensors", {"view": view})
    arrays, _ = storage.read_arrays(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(arrays["view"], view)


def test_metadata_comes_back_with_numpy_scalars_as_plain_values(tmp_path):
    metadata = {"decay": np.float64(0.5), "n": np.int64(3), "names": ["é", "日本"], "deep": {"on": np.bool_(True)}}
    storage.write_arrays(tmp_path / "a.safetensors", {"a": np.ones(1)}, metadata)
    _, read = storage.read_arrays(tmp_path / "a.safetensors")
    assert read == {"decay": 0.5, "n": 3, "names": ["é", "日本"], "deep": {"on": True}}


def test_read_arrays_outlive_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    storage.write_arrays(path, {"a": np.arange(5)})
    arrays, _ = storage.read_arrays(path)
    path.unlink()
    arrays["a"] += 1  # writeable, not a view of the mapped file
    assert arrays["a"].tolist() == [1, 2, 3, 4, 5]


def test_objects_are_refused_as_arrays(tmp_path):
    with pytest.raises(StorageError, match="'ids'.*object"):
        storage.write_arrays(tmp_path / "a.safetensors", {"ids": np.array(["a"], dtype=object)})
    assert list(tmp_path.iterdir()) == []


def test_strings_come_back_with_half_an_emoji(tmp_path):
    values = ["", "plain", "日本語", "line\nbreak", "nul\0", "broken \ud83d"]
    storage.write_strings(tmp_path / "s.parquet", values)
    read = storage.read_strings(tmp_path / "s.parquet")
    assert read.dtype == object
    assert read.tolist() == values


def test_no_strings_come_back_as_none(tmp_path):
    storage.write_strings(tmp_path / "s.parquet", [])
    assert storage.read_strings(tmp_path / "s.parquet").shape == (0,)


def test_frame_comes_back(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "price": [1.5, float("nan")], "count": [1, 2]}, index=[7, 8])
    storage.write_frame(tmp_path / "f.parquet", frame)
    pd.testing.assert_frame_equal(storage.read_frame(tmp_path / "f.parquet"), frame.reset_index(drop=True))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"sku": ["a", 1]}), "sku"),
        (pd.DataFrame({"sku": [{}, {}]}), "sku"),
        (pd.DataFrame({"sku": pd.arrays.SparseArray([0, 1])}), "sku"),
        (pd.DataFrame([[1, 2]], columns=["sku", "sku"]), "sku"),
        (pd.DataFrame({"sku": pd.Series([2**64 - 1, None], dtype=object)}), "too large"),
    ],
)
def test_what_parquet_does_not_keep_is_refused(tmp_path, frame, said):
    with pytest.raises(StorageError, match=f"{said}.*; give each column one type that Parquet keeps"):
        storage.write_frame(tmp_path / "f.parquet", frame)
    assert list(tmp_path.iterdir()) == []


def test_sparse_matrix_comes_back(tmp_path):
    matrix = csr_matrix(np.array([[0, 1.5, 0], [0, 0, 0], [2.0, 0, 3]], dtype=np.float32))
    storage.write_arrays(tmp_path / "m.safetensors", storage.sparse_arrays(matrix, "gram"))
    read = storage.sparse_from(storage.read_arrays(tmp_path / "m.safetensors")[0], "gram")
    assert read.dtype == np.float32
    assert read.shape == (3, 3)
    np.testing.assert_array_equal(read.toarray(), matrix.toarray())


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("a.safetensors", lambda p: storage.write_arrays(p, {"a": np.arange(100)}), storage.read_arrays),
        ("a.parquet", lambda p: storage.write_strings(p, ["a"] * 100), storage.read_strings),
        ("a.json", lambda p: storage.write_json(p, {"a": list(range(100))}), storage.read_json),
    ],
)
class TestSingleFiles:
    def test_missing_file_is_named(self, tmp_path, name, write, read):
        with pytest.raises(StorageError, match=f"{name} is missing"):
            read(tmp_path / name)

    def test_cut_file_is_named(self, tmp_path, name, write, read):
        write(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for length in (0, 1, len(content) // 2, len(content) - 2):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(StorageError, match=f"{name} is damaged"):
                read(tmp_path / name)

    def test_foreign_file_is_named(self, tmp_path, name, write, read):
        (tmp_path / name).write_bytes(b"\x80\x04\x95 not ours")
        with pytest.raises(StorageError, match=f"{name} is damaged"):
            read(tmp_path / name)

    def test_closed_file_is_named(self, tmp_path, name, write, read, monkeypatch):
        write(tmp_path / name)

        def closed(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(storage, "open", closed, raising=False)  # by its mode nothing is closed to an administrator
        with pytest.raises(StorageError, match=f"{name} may not be read by you; let its owner give you the right"):
            read(tmp_path / name)

    def test_who_may_read_a_new_file_may_read_it(self, tmp_path, name, write, read):
        before = os.umask(0o027)
        try:
            write(tmp_path / name)
            (tmp_path / "new").touch()
        finally:
            os.umask(before)
        assert (tmp_path / name).stat().st_mode == (tmp_path / "new").stat().st_mode

    def test_writing_leaves_only_the_file(self, tmp_path, name, write, read):
        write(tmp_path / name)
        write(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_safetensors_of_another_writer_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(StorageError, match="a.safetensors"):
        storage.read_arrays(tmp_path / "a.safetensors")


def test_failed_write_leaves_the_earlier_file(tmp_path):
    storage.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(StorageError, match="object"):
        storage.write_json(tmp_path / "a.json", {"new": object()})
    with pytest.raises(RuntimeError), storage.atomic_path(tmp_path / "a.json") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert storage.read_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_atomic_write_follows_a_link(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    storage.write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == {"a": 1}
