import numpy as np
import pytest

from llm_rerank.models.semantic.index import ItemIndex
from llm_rerank.types import DataError, StorageError


def unit(n, size=16, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def share_found(index, queries, k):
    """Share of the true k nearest that a search finds."""
    found, true = index.search(queries, k)[1], np.argsort(-(queries @ index.vectors().T), axis=1)[:, :k]
    return np.mean([np.isin(true[row], found[row]).mean() for row in range(len(queries))])


def test_search_by_hand():
    index = ItemIndex(2).add(np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32))
    scores, rows = index.search(np.array([[1, 0], [0, -1]], dtype=np.float32), 2)
    assert rows.tolist() == [[0, 2], [0, 2]]
    np.testing.assert_allclose(scores, [[1, 0.6], [0, -0.8]], atol=1e-6)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_flat_search_is_exact():
    vectors, queries = unit(500), unit(20, seed=1)
    scores, rows = ItemIndex(16).add(vectors).search(queries, 7)
    all_scores = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-all_scores, axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-all_scores, axis=1)[:, :7], atol=1e-5)


@pytest.mark.parametrize("flat_limit", [1000, 150])
def test_fewer_rows_than_asked_for(flat_limit):
    index = ItemIndex(16, flat_limit=flat_limit).add(unit(200))
    scores, rows = index.search(unit(3, seed=1), 203)
    assert (rows[:, -3:] == -1).all()
    assert np.isnan(scores[rows == -1]).all()
    assert np.isfinite(scores[rows >= 0]).all()
    empty_scores, empty_rows = ItemIndex(16).search(unit(2), 4)
    assert np.isnan(empty_scores).all() and (empty_rows == -1).all()


def test_adding_in_parts_is_adding_at_once():
    vectors, queries = unit(300), unit(10, seed=1)
    parts = ItemIndex(16).add(vectors[:100]).add(vectors[100:101]).add(vectors[101:])
    np.testing.assert_array_equal(parts.search(queries, 5)[1], ItemIndex(16).add(vectors).search(queries, 5)[1])
    np.testing.assert_array_equal(parts.vectors(), vectors)


def test_any_memory_layout_and_dtype_is_taken():
    vectors = unit(50)
    index = ItemIndex(16).add(np.asfortranarray(vectors.astype(np.float64)))
    np.testing.assert_array_equal(index.search(vectors[::-1], 1)[1].ravel(), np.arange(50)[::-1])


def test_above_the_limit_it_becomes_a_graph_that_finds_nearly_all():
    vectors, queries = unit(3000, 32), unit(50, 32, seed=1)
    index = ItemIndex(32, flat_limit=1000).add(vectors[:1000])
    assert index.is_exact
    assert share_found(index, queries, 10) == 1
    index.add(vectors[1000:2000]).add(vectors[2000:])
    assert not index.is_exact
    np.testing.assert_array_equal(index.vectors(), vectors)
    assert share_found(index, queries, 10) > 0.98


@pytest.mark.parametrize("flat_limit", [1000, 100])
def test_a_file_of_an_index_is_read(tmp_path, flat_limit):
    import faiss

    index = ItemIndex(16, flat_limit=flat_limit).add(unit(400))
    faiss.write_index(index._index, str(tmp_path / "index.faiss"))
    loaded = ItemIndex.load(tmp_path / "index.faiss", flat_limit=flat_limit)
    assert (len(loaded), loaded.embedding_size, loaded.is_exact) == (400, 16, flat_limit == 1000)
    for one, other in zip(loaded.search(unit(9, seed=1), 5), index.search(unit(9, seed=1), 5), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded.add(unit(1, seed=5))
    assert loaded.search(unit(1, seed=5), 1)[1].tolist() == [[400]]


def test_bad_files_are_named(tmp_path):
    import faiss

    path = tmp_path / "index.faiss"
    with pytest.raises(StorageError, match=r"index\.faiss is missing"):
        ItemIndex.load(path)
    faiss.write_index(ItemIndex(16).add(unit(100))._index, str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"index\.faiss is damaged"):
        ItemIndex.load(path)
    path.write_bytes(b"no index at all")
    with pytest.raises(StorageError, match=r"index\.faiss is damaged"):
        ItemIndex.load(path)
    faiss.write_index(faiss.IndexFlatL2(16), str(path))
    with pytest.raises(StorageError, match="IndexFlatL2"):
        ItemIndex.load(path)


def test_bad_input_is_named():
    index = ItemIndex(16).add(unit(10))
    with pytest.raises(DataError, match=r"shape \(2, 8\)"):
        index.add(unit(2, 8))
    with pytest.raises(DataError, match="NaN or infinity"):
        index.search(np.full((1, 16), np.nan, dtype=np.float32), 1)
    with pytest.raises(DataError, match="k is 0"):
        index.search(unit(1), 0)
    with pytest.raises(DataError, match="embedding_size is 0"):
        ItemIndex(0)
    assert len(index) == 10
