"""Candidates of a user: the union of several retrievers' lists, never text alone; and lists put in order of a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.reliability import Float64Array, RealArray
from llm_rerank.types import BoolArray, DataError, IntArray, Ragged


def union(sources: Sequence[Ragged], n_items: int) -> Ragged:
    """Merge several ranked lists a case into one without repeats, best rank in any list first.

    Two items with the same best rank keep the order of the sources. Codes below 0 are left out.

    Raises DataError where there is no source or where the sources have unequal numbers of rows.
    """
    if not sources or len({len(source) for source in sources}) != 1:
        raise DataError(
            f"union got {len(sources)} sources of {[len(source) for source in sources]} rows; "
            "give at least one, all with one row a case"
        )
    rows = np.concatenate([source.row_of_value for source in sources])
    codes = np.concatenate([source.values for source in sources])
    ranks = np.concatenate([positions_in_row(source) for source in sources])
    order_of_source = np.repeat(np.arange(len(sources)), [len(source.values) for source in sources])
    known = codes >= 0
    rows, codes, ranks, order_of_source = rows[known], codes[known], ranks[known], order_of_source[known]
    order = np.lexsort((order_of_source, ranks, rows))
    rows, codes = rows[order], codes[order]
    # np.unique reports the first place of each pair, which after the sort is the pair's best rank
    _, first = np.unique(rows * np.int64(n_items) + codes, return_index=True)
    kept = np.sort(first)
    return Ragged.from_lengths(codes[kept], np.bincount(rows[kept], minlength=len(sources[0])).astype(np.int64))


def positions_in_row(rows: Ragged) -> IntArray:
    """Position of each value in its row, from 0: int64, shape (n_values,)."""
    return np.arange(len(rows.values), dtype=np.int64) - np.repeat(rows.offsets[:-1], rows.lengths)


def best_first(scores: RealArray, rows: Ragged) -> IntArray:
    """Order of the values that puts each row's greatest score first, rows kept in place.

    scores: shape (n_values,). Ties keep the input order; NaN goes last. Returns positions: int64, shape (n_values,).
    """
    badness = np.where(np.isnan(scores), np.inf, -scores)
    return np.lexsort((badness, rows.row_of_value)).astype(np.int64)


def ranks_in_row(scores: RealArray, rows: Ragged) -> IntArray:
    """Rank of each value in its row, from 1, greatest score first: int64, shape (n_values,)."""
    ranks = np.empty(len(rows.values), dtype=np.int64)
    ranks[best_first(scores, rows)] = positions_in_row(rows) + 1
    return ranks


def ranked(scores: RealArray, rows: Ragged, k: int | None = None) -> Ragged:
    """Reorder each row by falling score and keep the first k values of each."""
    ordered = Ragged(rows.values[best_first(scores, rows)], rows.offsets)
    if k is None:
        return ordered
    kept = positions_in_row(ordered) < k
    return Ragged.from_lengths(ordered.values[kept], np.minimum(ordered.lengths, k))


def is_member(rows: Ragged, others: Ragged, n_items: int) -> BoolArray:
    """Tell for each value of ``rows`` whether the same row of ``others`` holds it: bool, shape (n_values,)."""
    stride = np.int64(n_items + 1)
    return np.isin(rows.row_of_value * stride + rows.values, others.row_of_value * stride + others.values)


def ndcg_of(scores: RealArray, rows: Ragged, targets: Ragged, k: int = 10) -> Float64Array:
    """NDCG@k of each case with its candidates in order of scores: float64, shape (n_cases,); NaN without a target."""
    hits = hit_matrix(ranked(scores, rows, k), targets, k)
    return ndcg_at_k(hits, targets.lengths, k)
