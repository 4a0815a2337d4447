"""Stochastic gradient descent on two tables of vectors, R ≈ UᵀV: squared error on ratings, or logistic on events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import expit

from llm_rerank.models.scoring import interaction_matrix
from llm_rerank.types import DataError, FloatArray, IntArray, Interactions

_LARGEST_BATCH = 1024
_FEWEST_BATCHES = 64  # an epoch of a small shop too is many steps, or summed gradients would overshoot
_NEGATIVES_A_BATCH = 256
_INITIAL_SCALE = 0.1


@dataclass(frozen=True)
class Cells:
    """Observed cells of R: users, items int64 codes; targets, weights float32; all of shape (n_cells,)."""

    users: IntArray
    items: IntArray
    targets: FloatArray
    weights: FloatArray


def liked_cells(past: Interactions) -> Cells:
    """Distinct (user, item) of positive weight; targets are all 1."""
    liked = interaction_matrix(past).tocoo()
    if not liked.nnz:
        raise DataError("sgd_mf found no event of positive weight to learn from; check event, weight and min_rating")
    users, items = liked.row.astype(np.int64), liked.col.astype(np.int64)
    return Cells(users, items, np.ones(liked.nnz, dtype=np.float32), liked.data)


def rated_cells(past: Interactions) -> Cells:
    """Distinct (user, item) with a rating; the newest rating counts."""
    rated = np.flatnonzero(~np.isnan(past.ratings) & (past.items >= 0))[::-1]  # newest first: unique keeps the first
    if not len(rated):
        raise DataError("sgd_mf with form='explicit' found no rating; give a column rating or use form='implicit'")
    _, first = np.unique(past.users[rated] * past.n_items + past.items[rated], return_index=True)
    rows = rated[first]
    return Cells(past.users[rows], past.items[rows], past.ratings[rows], np.ones(len(rows), dtype=np.float32))


@dataclass(frozen=True)
class DescentSettings:
    """How to descend; negative_weight None: squared error, else logistic against drawn items."""

    learning_rate: float
    epochs: int
    regularization: float
    negative_weight: float | None


def descend(
    cells: Cells,
    users: FloatArray,
    items: FloatArray,
    *,
    free_user: FloatArray,
    free_item: FloatArray,
    settings: DescentSettings,
    rng: np.random.Generator,
) -> FloatArray:
    """Move users and items, in place, down the gradient of Σ_cells w·(loss + ½λ‖u‖² + ½λ‖v‖²), batch by batch.

    A batch's gradients are summed a vector, not averaged: the step of a cell does not depend on the batch's size.
    users, items: float32, shape (n_users, n_columns) and (n_items, n_columns).
    free_user, free_item: float32, shape (n_columns,), 0 for columns that stay as they are, else 1.
    Returns the mean loss a cell of each epoch, without the penalty: float32, shape (epochs,); the squared error is
    whole there, halved in the gradient.

    Raises DataError where the loss is no longer finite.
    """
    n_cells = len(cells.users)
    batch_size = int(np.clip(n_cells // _FEWEST_BATCHES, 1, _LARGEST_BATCH))
    rate, penalty = np.float32(settings.learning_rate), np.float32(settings.regularization)
    curve = np.zeros(settings.epochs, dtype=np.float32)
    for epoch in range(settings.epochs):
        order = rng.permutation(n_cells)
        total = 0.0
        for start in range(0, n_cells, batch_size):
            batch = order[start : start + batch_size]
            rows, columns, weights = cells.users[batch], cells.items[batch], cells.weights[batch]
            u, v = users[rows], items[columns]
            scores = np.einsum("ij,ij->i", u, v)
            if settings.negative_weight is None:
                errors = scores - cells.targets[batch]
                losses, residuals = errors**2, errors * weights
                user_gradient = residuals[:, None] * v
            else:
                drawn = rng.integers(0, len(items), _NEGATIVES_A_BATCH)
                losses, residuals, opposed = logistic_residuals(scores, u @ items[drawn].T, settings.negative_weight)
                residuals, opposed = residuals * weights, opposed * weights[:, None]
                user_gradient = residuals[:, None] * v + opposed @ items[drawn]
                subtract_rows(items, drawn, rate * free_item * (opposed.T @ u))
            shrink = penalty * weights[:, None]
            subtract_rows(items, columns, rate * free_item * (residuals[:, None] * u + shrink * v))
            subtract_rows(users, rows, rate * free_user * (user_gradient + shrink * u))
            total += float(losses @ weights)
        curve[epoch] = total / float(cells.weights.sum())
        if not np.isfinite(curve[epoch]):
            raise DataError(
                f"gradient descent diverged in epoch {epoch + 1} with learning_rate {settings.learning_rate}; lower it"
            )
    return curve


def initial_vectors(rng: np.random.Generator, n_rows: int, embedding_size: int, *, fixed_column: int) -> FloatArray:
    """Draw small vectors, biases 0, one column fixed at 1: float32, shape (n_rows, embedding_size + 2)."""
    vectors = np.zeros((n_rows, embedding_size + 2), dtype=np.float32)
    vectors[:, :embedding_size] = rng.standard_normal((n_rows, embedding_size)) * _INITIAL_SCALE / embedding_size**0.5
    vectors[:, fixed_column] = 1.0
    return vectors


def logistic_residuals(
    scores: FloatArray, opposed: FloatArray, negative_weight: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Loss log(1 + e^−s) + ω mean_j log(1 + e^s_j) and its derivatives in s and s_j.

    scores: float32, shape (n,). opposed: float32, shape (n, n_drawn). Returns loss, ds (n,) and ds_j (n, n_drawn).
    """
    share = np.float32(negative_weight / opposed.shape[1])
    losses = np.logaddexp(0.0, -scores) + share * np.logaddexp(0.0, opposed).sum(axis=1)
    return losses, -expit(-scores), share * expit(opposed)


def subtract_rows(matrix: FloatArray, rows: IntArray, steps: FloatArray) -> None:
    """Subtract steps (shape (n, n_columns)) from the rows named (shape (n,)), in place; a row named twice gets both."""
    distinct, place = np.unique(rows, return_inverse=True)
    # a sparse product sums far faster than np.subtract.at
    sums = csr_matrix((np.ones(len(rows), dtype=np.float32), (place, np.arange(len(rows)))))
    matrix[distinct] -= sums @ steps
