"""One more user at fixed item vectors, by squared or by logistic loss: pure functions, many users at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from llm_rerank.types import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_BLOCK_ROWS = 512
_BLOCK_CELLS = 2**22  # float64 cells of the outer products held at once: 32 MiB
_STEPS = 50


def ridge_fold_in(vectors: FloatArray, targets: FloatArray, lengths: IntArray, regularization: float) -> FloatArray:
    """Minimise Σ_events ½(target − x·v)² + ½λ‖x‖² over x for each row, in closed form.

    λ counts once an event, as the descent does. vectors: float32, shape (n_events, n_columns), row after row.
    targets: float32, shape (n_events,). lengths: int64, events of each row.
    Returns x: float32, shape (n_rows, n_columns); 0 for a row without events.
    """
    n_columns = vectors.shape[1]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    solved = np.zeros((len(lengths), n_columns), dtype=np.float32)
    for first in range(0, len(lengths), _BLOCK_ROWS):
        last = min(first + _BLOCK_ROWS, len(lengths))
        rows = np.repeat(np.arange(last - first), lengths[first:last])
        gram = np.zeros((last - first, n_columns, n_columns))
        right = np.zeros((last - first, n_columns))
        chunk = max(1, _BLOCK_CELLS // n_columns**2)
        for start in range(0, len(rows), chunk):
            row = rows[start : start + chunk]
            events = slice(offsets[first] + start, offsets[first] + start + len(row))
            v = vectors[events].astype(np.float64)
            starts = np.flatnonzero(np.diff(row, prepend=-1))
            gram[row[starts]] += np.add.reduceat(v[:, :, None] * v[:, None, :], starts)
            right[row[starts]] += np.add.reduceat(v * targets[events, None], starts)
        penalty = regularization * np.maximum(lengths[first:last], 1)
        gram += penalty[:, None, None] * np.eye(n_columns)
        solved[first:last] = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    return solved


def logistic_fold_in(
    histories: csr_matrix,
    vectors: FloatArray,
    opposed: FloatArray,
    prior: FloatArray,
    *,
    free: FloatArray,
    negative_weight: float,
    regularization: float,
) -> FloatArray:
    """Minimise mean_h softplus(−x·v) + ω mean_opposed softplus(x·v) + ½λ‖x − prior‖² over x for each row.

    mean_h is weighted by the history; ω = negative_weight. Convex, so the start does not matter; each row takes
    50 accelerated steps (Nesterov 1983) of 1 / L, L an upper bound of its own curvature. A row's result
    depends on no other row.

    histories: float32 CSR, shape (n_rows, n_items), weights above 0, no empty row (at least one row).
    vectors: float32, shape (n_items, n_columns). opposed: float32, shape (n_opposed, n_columns).
    prior: float32, shape (n_rows, n_columns), also the start. free: 0 for columns that stay as they are, else 1.
    Returns x: float32, shape (n_rows, n_columns).
    """
    lengths = np.diff(histories.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    shares = histories.copy()
    shares.data = (histories.data / np.add.reduceat(histories.data, histories.indptr[:-1])[rows]).astype(np.float32)
    known = vectors[shares.indices]
    opposed_share = np.float32(negative_weight / len(opposed))
    own_curvature = shares @ (vectors**2 @ free)
    common_curvature = opposed_share * np.linalg.norm(opposed * free, 2) ** 2
    step = (1.0 / (0.25 * (own_curvature + common_curvature) + regularization)).astype(np.float32)[:, None] * free

    x, ahead, momentum = prior, prior, 1.0
    for _ in range(_STEPS):
        residuals = shares.copy()
        residuals.data = -shares.data * expit(-np.einsum("ij,ij->i", ahead[rows], known))
        gradient = residuals @ vectors + (opposed_share * expit(ahead @ opposed.T)) @ opposed
        gradient += np.float32(regularization) * (ahead - prior)
        moved = ahead - step * gradient
        next_momentum = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = moved + np.float32((momentum - 1.0) / next_momentum) * (moved - x)
        x, momentum = moved, next_momentum
    return x
