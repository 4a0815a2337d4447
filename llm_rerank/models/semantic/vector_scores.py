"""The arithmetic of scores by vectors, whatever made them: of texts in ``similarity.py``, of others in ``media.py``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_matrix

from llm_rerank.models.scoring import history_matrix
from llm_rerank.models.unit_length import unit_rows
from llm_rerank.types import BoolArray, Cases, FloatArray, IntArray

BLOCK_SIZE = 256
"""Cases scored at once."""

COLUMN_CELLS = 2**24
"""Cells of the table of similarities (history items × candidates) held at once: 64 MB."""


def history_vectors(cases: Cases, vectors: FloatArray, known: BoolArray, decay: float) -> tuple[FloatArray, csr_matrix]:
    """Sum the vectors of each history, decayed: float32 (n_cases, size), unit length, zero where it says nothing.

    vectors: float32, shape (n_items, size). known: bool, shape (n_items,), items that have one.
    Returns the decayed histories too, as ``history_matrix`` gives them.
    """
    history = history_matrix(cases, len(vectors), decay=decay, positive_only=False, readable=known)
    return unit_rows(history @ vectors), history


def similarity_table(
    users: FloatArray,
    history: csr_matrix,
    vectors: FloatArray,
    candidates: FloatArray,
    known: BoolArray,
    greatest_weight: float,
) -> FloatArray:
    """Score candidates for each user's vector by the formula of ``SemanticScorer``.

    candidates: vectors, shape (n_candidates, size). known: bool, shape (n_candidates,), those that have one.
    Returns float32, shape (n_cases, n_candidates); NaN where either side has no vector.
    """
    table = users @ candidates.T
    if greatest_weight:
        table += greatest_weight * greatest_similarity(history, vectors, candidates)
        table /= 1 + greatest_weight
    table[~np.any(users != 0, axis=1)] = np.nan
    table[:, ~known] = np.nan
    return table


def score_rows(
    cases: Cases, rows: IntArray, n_rows: int, table_of: Callable[[Cases, IntArray], FloatArray]
) -> FloatArray:
    """Score rows of vectors, laid out as the candidates, block by block; NaN for a row that is not there.

    rows: int64, shape (n_candidates,). n_rows: rows that there are. table_of: scores of a block of cases and distinct
    rows, shape (n_cases, n_rows). Returns float32, shape (n_candidates,).
    """
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    for start in range(0, len(cases), BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, len(cases))
        first, last = cases.candidates.offsets[start], cases.candidates.offsets[stop]
        of_block = rows[first:last]
        known = (of_block >= 0) & (of_block < n_rows)
        if not known.any():
            continue
        # only the candidates of the block, each once: a catalogue of a million is never scored whole
        columns, column_of_candidate = np.unique(of_block[known], return_inverse=True)
        table = table_of(cases.take(np.arange(start, stop, dtype=np.int64)), columns)
        case_of = np.repeat(np.arange(stop - start), cases.candidates.lengths[start:stop])
        scores[first:last][known] = table[case_of[known], column_of_candidate]
    return scores


def greatest_similarity(history: csr_matrix, vectors: FloatArray, candidates: FloatArray) -> FloatArray:
    """Greatest similarity of candidates to a liked item of the history, each liked item scaled by its share of weight.

    history: weights, shape (n_cases, n_items); entries of 0 and below are left out, a row's greatest entry counts 1.
    vectors: float32, shape (n_items, size). candidates: vectors, float32, shape (n_candidates, size).
    Returns float32, shape (n_cases, n_candidates); 0 where a row has no positive entry.
    """
    liked = history.copy()
    liked.data = np.maximum(liked.data, 0)
    liked.eliminate_zeros()
    lengths = np.diff(liked.indptr)
    share = liked.data / np.repeat(liked.max(axis=1).toarray().ravel(), lengths)
    used, row_of_entry = np.unique(liked.indices, return_inverse=True)
    greatest = np.zeros((liked.shape[0], len(candidates)), dtype=np.float32)
    width = max(1, COLUMN_CELLS // max(len(used), 1))
    for start in range(0, len(candidates) if len(used) else 0, width):
        similarities = vectors[used] @ candidates[start : start + width].T
        block = greatest[:, start : start + width]
        block[lengths > 0] = -np.inf
        for place in range(lengths.max()):  # as many steps as the longest history has items
            rows = np.flatnonzero(lengths > place)
            entries = liked.indptr[rows] + place
            block[rows] = np.maximum(block[rows], share[entries, None] * similarities[row_of_entry[entries]])
    return greatest
