"""What every scorer needs around its own arithmetic: histories as sparse rows, gathering, the best k, retrieval.

Nothing here learns. Everything is whole-array numpy and scipy; the only loops are over blocks of cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from llm_rerank.data.cases import QUERY_SEPARATOR
from llm_rerank.types import (
    BoolArray,
    Cases,
    CatalogueScorer,
    DataError,
    FloatArray,
    IntArray,
    Interactions,
    Items,
    Ragged,
)

BLOCK_CELLS = 2**25
"""Scores of cases × items held at once: 128 MiB of float32."""

MOST_CASES_A_BLOCK = 1024
FEW_CASES = 32
"""So many go at once whatever the catalogue: with a million items they have ``BLOCK_CELLS`` scores."""


def history_matrix(
    cases: Cases, n_items: int, *, decay: float = 0.0, positive_only: bool = True, readable: BoolArray | None = None
) -> csr_matrix:
    """Histories as sparse rows: entry = weight × exp(−decay × age), the strongest where an item comes again.

    Age counts *visits* (distinct times) back from the newest, 0 for the newest itself, so that a basket has one age
    and a shop's clock has no unit. Items outside the catalogue are left out, but their visits count.

    n_items: number of columns. decay: 0 or more, an age of one visit costs the factor exp(−decay).
    positive_only: leave out events of weight ≤ 0 (dislikes); else the entry of greatest magnitude stands.
    readable: bool, shape (n_items,), for scorers that read a row's direction alone: other items are left out, and the
    greatest magnitude of each row becomes 1, so that what is read does not fade away behind visits that say nothing.
    Returns float32 CSR, shape (n_cases, n_items), sorted indices, no duplicates.
    """
    return _decayed_rows(
        cases.history,
        cases.history_weights,
        cases.history_times,
        n_items,
        decay=decay,
        positive_only=positive_only,
        readable=readable,
    )


def interaction_matrix(past: Interactions) -> csr_matrix:
    """Users' liked items as sparse rows, exactly as ``history_matrix`` would build them without a decay.

    Returns float32 CSR, shape (n_users, n_items); entries above 0 only.
    """
    history, weights, times = histories_of(past)
    return _decayed_rows(history, weights, times, past.n_items, decay=0.0, positive_only=True, readable=None)


def histories_of(past: Interactions) -> tuple[Ragged, FloatArray, IntArray]:
    """Pack events by user: items (row = user, oldest first), weights float32 and times int64, both (n_packed,).

    Searches without an item are left out.
    """
    rows = np.flatnonzero(past.items >= 0)
    rows = rows[np.argsort(past.users[rows], kind="stable")]  # stable: time order within a user stays
    lengths = np.bincount(past.users[rows], minlength=past.n_users)
    return Ragged.from_lengths(past.items[rows], lengths), past.weights[rows], past.times[rows]


def visit_numbers(history: Ragged, times: IntArray) -> IntArray:
    """Count each row's distinct times from 0 at the oldest: int64, shape (n_values,). Times rise within a row."""
    if not len(times):
        return np.empty(0, dtype=np.int64)
    new_visit = np.ones(len(times), dtype=np.int64)
    new_visit[1:] = times[1:] != times[:-1]
    starts = history.offsets[:-1][history.lengths > 0]
    new_visit[starts] = 1
    running = np.cumsum(new_visit)
    return running - np.repeat(running[starts], history.lengths[history.lengths > 0])


def _decayed_rows(
    history: Ragged,
    weights: FloatArray,
    times: IntArray,
    n_items: int,
    *,
    decay: float,
    positive_only: bool,
    readable: BoolArray | None,
) -> csr_matrix:
    if decay < 0:
        raise DataError(f"decay is {decay}; it must be 0 or more, for example 0.15 a visit")
    rows = history.row_of_value
    visits = visit_numbers(history, times)
    newest = np.zeros(len(history), dtype=np.int64)
    filled = history.lengths > 0
    newest[filled] = visits[history.offsets[1:][filled] - 1]
    values = weights.astype(np.float64) * np.exp(-decay * (newest[rows] - visits))
    kept = (history.values >= 0) & (history.values < n_items)
    if readable is not None:
        kept[kept] = readable[history.values[kept]]
    if positive_only:
        kept &= weights > 0
    cells = rows[kept] * n_items + history.values[kept]
    values = values[kept]
    order = np.lexsort((np.abs(values), cells))  # the strongest of equal cells comes last
    cells, values = cells[order], values[order]
    last = np.ones(len(cells), dtype=bool)
    last[:-1] = cells[1:] != cells[:-1]
    cells, values = cells[last], values[last]
    lengths = np.bincount(cells // n_items, minlength=len(history))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    if readable is not None and len(values):  # before float32, which knows nothing below e^−103
        greatest = np.maximum.reduceat(np.abs(values), indptr[:-1][lengths > 0])
        values /= np.repeat(np.where(greatest > 0, greatest, 1.0), lengths[lengths > 0])
    return csr_matrix((values.astype(np.float32), cells % n_items, indptr), shape=(len(history), n_items))


def search_matrix(queries: Sequence[str], decay: float) -> tuple[list[str], csr_matrix]:
    """Take searches apart, with what each counts in its case: exp(−decay × searches since), 1 for the newest.

    queries: of each case, joined as ``Cases.queries``. Returns the texts, and float32 CSR, shape (n_cases, n_texts).
    """
    searches = [query.split(QUERY_SEPARATOR) if query else [] for query in queries]
    texts = [text for of_case in searches for text in of_case]
    ends = np.cumsum([len(of_case) for of_case in searches], dtype=np.int64)
    lengths = np.diff(ends, prepend=0)
    age = np.repeat(ends, lengths) - 1 - np.arange(len(texts))
    weights = np.exp(-decay * age).astype(np.float32)
    indptr = np.concatenate([[0], ends])
    return texts, csr_matrix((weights, np.arange(len(texts)), indptr), shape=(len(queries), len(texts)))


def require_texts(items: Items, scorer: str) -> None:
    """Raise DataError where there are items and none of them has a text. scorer: what needs one, for the message."""
    if len(items) and not any(text.strip() for text in items.texts):
        raise DataError(
            f"none of the {len(items)} items has a text; render them first (data/rendering.py, render_items), or "
            f"leave the {scorer} out"
        )


def cases_a_block(n_items: int) -> int:
    """Cases to be scored against a whole catalogue at once."""
    return int(np.clip(BLOCK_CELLS // max(n_items, 1), 1, MOST_CASES_A_BLOCK))


def _blocks(scorer: CatalogueScorer, cases: Cases) -> Iterator[IntArray]:
    """Cut rows of the cases into blocks: int64, one after another. How many items there are the first case tells."""
    size = FEW_CASES
    if len(cases) > FEW_CASES:
        size = cases_a_block(scorer.score_catalogue(cases.take(np.zeros(1, dtype=np.int64))).shape[1])
    for start in range(0, len(cases), size):
        yield np.arange(start, min(start + size, len(cases)), dtype=np.int64)


def score_candidates(scorer: CatalogueScorer, cases: Cases) -> FloatArray:
    """Gather candidates' scores out of ``scorer.score_catalogue``, block by block.

    Returns float32, shape (n_candidates,); NaN for code −1 and for codes beyond the catalogue.
    """
    scores = np.full(len(cases.candidates.values), np.nan, dtype=np.float32)
    if not len(scores):
        return scores
    for block_rows in _blocks(scorer, cases):
        start, stop = block_rows[0], block_rows[-1] + 1
        first, last = cases.candidates.offsets[start], cases.candidates.offsets[stop]
        if first == last:
            continue
        table = scorer.score_catalogue(cases.take(block_rows))
        codes = cases.candidates.values[first:last]
        rows = np.repeat(np.arange(stop - start), cases.candidates.lengths[start:stop])
        known = (codes >= 0) & (codes < table.shape[1])
        block = scores[first:last]
        block[known] = table[rows[known], codes[known]]
    return scores


def top_k(scores: FloatArray, k: int, exclude: Ragged | None = None) -> Ragged:
    """Columns of each row's k highest scores, best first; ties break by column order.

    scores: float32, shape (n_rows, n_columns), left as it is; NaN and −inf are never taken, so a row may have fewer.
    exclude: columns not to take, row by row; codes outside the columns are ignored.

    Raises DataError where k is below 1.
    """
    if k < 1:
        raise DataError(f"k is {k}; it must be at least 1")
    n_rows, n_columns = scores.shape
    usable = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    if exclude is not None:
        inside = (exclude.values >= 0) & (exclude.values < n_columns)
        usable[exclude.row_of_value[inside], exclude.values[inside]] = -np.inf
    if k < n_columns:
        # the k-th value first, then its ties by column: argpartition alone would pick ties at random
        kth = np.partition(usable, n_columns - k, axis=1)[:, n_columns - k, None]
        taken = usable > kth
        tied_rows, tied_columns = np.nonzero((usable == kth) & (kth > -np.inf))
        room = k - taken.sum(axis=1)
        rank = np.arange(len(tied_rows)) - np.searchsorted(tied_rows, np.arange(n_rows))[tied_rows]
        fits = rank < room[tied_rows]
        taken[tied_rows[fits], tied_columns[fits]] = True
    else:
        taken = usable > -np.inf
    rows, columns = np.nonzero(taken)
    order = np.lexsort((columns, -usable[rows, columns], rows))
    return Ragged.from_lengths(columns[order].astype(np.int64), np.bincount(rows, minlength=n_rows))


def retrieve(scorer: CatalogueScorer, cases: Cases, k: int, exclude: Ragged | None = None) -> Ragged:
    """Find at most k items a case with the highest scores of the whole catalogue, best first.

    exclude: item codes not to retrieve (usually what the user has had), one row a case.
    """
    values, lengths = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for rows in _blocks(scorer, cases):
        block_exclude = None if exclude is None else exclude.take(rows)
        best = top_k(scorer.score_catalogue(cases.take(rows)), k, block_exclude)
        values.append(best.values)
        lengths.append(best.lengths)
    return Ragged.from_lengths(np.concatenate(values), np.concatenate(lengths))
