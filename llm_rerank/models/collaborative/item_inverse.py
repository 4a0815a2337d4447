"""The dense arithmetic under EASE: Gram matrix of the users' items, its inverse in place, scores.

Used by ``ease.py`` and ``text_ease.py``; no scorer by itself. One float32 matrix of n_items² is held, no copy is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

from llm_rerank.models.collaborative.item_item import SUPPORT_OFFSET, Float64Array, decayed_pairs, distinct_events
from llm_rerank.models.scoring import histories_of, history_matrix
from llm_rerank.types import BoolArray, Cases, DataError, FloatArray, Interactions

MOST_ITEMS = 20_000
"""n² float32 is 1.6 GB here and the inverse takes minutes; beyond it ``ItemKNN`` is the tool."""


def check_catalogue(name: str, n_items: int) -> None:
    """Raise DataError where a dense inverse would be too large."""
    if n_items > MOST_ITEMS:
        raise DataError(
            f"{name} was given {n_items:,} items; its dense inverse takes at most {MOST_ITEMS:,} "
            f"({n_items**2 * 4 / 1e9:.1f} GB here): use ItemKNN, or fewer items"
        )


def gram_matrix(
    past: Interactions, pair_decay: float, *, dtype: type[np.floating[Any]] = np.float32
) -> tuple[npt.NDArray[np.floating[Any]], Float64Array]:
    """Σ over users of w_i w_j exp(−pair_decay × visits apart); on the diagonal Σ w².

    The kernel exp(−|a − b|) is positive semi-definite, so the sum is too, whatever the decay.

    Returns the matrix in ``dtype``, shape (n_items, n_items), and each item's support Σ w, float64, shape (n_items,).
    """
    events, weights, visits = distinct_events(*histories_of(past), past.n_items)
    gram = np.zeros((past.n_items, past.n_items), dtype=dtype)
    if pair_decay == 0:  # the same sum as below, five times as fast
        liked = csr_matrix((weights.astype(dtype), events.values, events.offsets), shape=(len(events), past.n_items))
        by_item = liked.T.tocsr()
        for start in range(0, past.n_items, SQUARE_BLOCK):  # in blocks: the sparse product takes twice the dense one
            gram[start : start + SQUARE_BLOCK] = (by_item[start : start + SQUARE_BLOCK] @ liked).toarray()
    else:
        for part in decayed_pairs(events, weights, visits, past.n_items, pair_decay):
            entries = part.tocoo()  # a product has no duplicates, so += below adds each entry once
            gram[entries.row, entries.col] += entries.data
            gram[entries.col, entries.row] += entries.data
        diagonal = np.bincount(events.values, weights=weights**2.0, minlength=past.n_items)
        gram[np.diag_indices_from(gram)] = diagonal
    # float32 weights add up in float64 without rounding: a user taken out leaves exactly what the others brought
    return gram, np.bincount(events.values, weights=weights, minlength=past.n_items).astype(np.float64)


def invert_in_place(matrix: FloatArray, least_eigenvalue: float) -> FloatArray:
    """Invert a symmetric positive definite matrix by Cholesky, overwriting it where float32 is accurate enough.

    matrix: float32, C order, shape (n, n). least_eigenvalue: a lower bound, from which the condition is bounded; where
    float32 would lose more than three digits, the work is done in float64 (n² × 8 bytes more).
    Returns float32, shape (n, n). 4,385 items: 2–4 s on one core.

    Raises DataError where the matrix is not positive definite.
    """
    largest = max((float(np.abs(row).sum(dtype=np.float64)) for row in matrix), default=0.0)  # bounds eigenvalues
    condition = largest / least_eigenvalue
    work = matrix if condition < MOST_CONDITION_FLOAT32 else matrix.astype(np.float64)
    potrf, potri = (lapack.spotrf, lapack.spotri) if work is matrix else (lapack.dpotrf, lapack.dpotri)
    # LAPACK reads columns first: the transposed view of a symmetric C-ordered matrix is the matrix, without a copy
    factor, failed = potrf(work.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
        factor, failed = potri(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError("the item matrix is not positive definite; raise regularization")
    inverse = factor.T
    for start in range(0, len(inverse), SQUARE_BLOCK):  # LAPACK filled one triangle: here, the upper
        mirror_upper(inverse, start, min(start + SQUARE_BLOCK, len(inverse)))
    return np.ascontiguousarray(inverse, dtype=np.float32)


def mirror_upper(matrix: npt.NDArray[np.floating[Any]], start: int, stop: int) -> None:
    """Copy what rows start to stop have above the diagonal to the columns below it, in place."""
    matrix[stop:, start:stop] = matrix[start:stop, stop:].T
    square = matrix[start:stop, start:stop]
    matrix[start:stop, start:stop] = np.triu(square) + np.triu(square, 1).T


MOST_CONDITION_FLOAT32 = 1e4
SQUARE_BLOCK = 512


@dataclass(frozen=True)
class ItemInverse:
    """P = (G + λI)⁻¹ with what is needed to score from it.

    The weight of history item i for item j is −P_ij / P_jj, and 0 for i = j; a column may be scaled by
    (support + 3)^exponent.

    inverse: float32, shape (n_items, n_items), symmetric. support: float64, shape (n_items,), Σ of users' weights.
    has_text: bool, shape (n_items,); items that a text kernel knows without any event.
    """

    inverse: FloatArray
    support: Float64Array
    has_text: BoolArray

    def catalogue_scores(self, cases: Cases, *, decay: float, exponent: float) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items); NaN for items and histories of which nothing is known.

        decay: of the history, a visit.
        """
        history = history_matrix(cases, len(self.support), decay=decay)
        known = (self.support > 0) | self.has_text
        scores = np.asarray(history @ self.inverse)
        scores /= -self.inverse.diagonal()
        entries = history.tocoo()
        scores[entries.row, entries.col] += entries.data  # so that an item says nothing of itself
        if exponent:
            scores *= ((self.support + SUPPORT_OFFSET) ** exponent).astype(np.float32)
        scores[:, ~known] = np.nan
        scores[history @ known.astype(np.float32) == 0] = np.nan
        return scores


LEAST_SUPPORT = 1e-3
"""What float32 may leave of a support when its only user is taken out; event weights are far above it."""
