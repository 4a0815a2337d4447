"""Changes of ``ItemInverse`` without a new inverse: users put in or taken out, items added, rows of the kernel changed.

Each is an identity of linear algebra (Woodbury; block inverse), worked out in float64 and rounded once to float32.
What float32 had not kept before, no identity brings back: where users who outweigh all others go, that is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from llm_rerank.models.changes import not_counted, of_few_users
from llm_rerank.models.collaborative.item_inverse import (
    LEAST_SUPPORT,
    SQUARE_BLOCK,
    ItemInverse,
    gram_matrix,
    mirror_upper,
)
from llm_rerank.models.collaborative.item_item import Float64Array
from llm_rerank.types import FloatArray, InexactError, IntArray, Interactions

MOST_RANK = 0.5
"""Share of the items that the users of one step may touch: beyond it a step would cost more than a fit."""

MOST_LOST = 1e-3
"""Relative error of a change, as ``put_in`` bounds it, up to which it counts as exact; ordinary weights: below 1e-5.
160 planted items, one user with events of weight 30 instead of 1: bound 4e-3, scores wrong by 5e-4 of the greatest;
of weight 300: 10, and wrong by .9."""


def revised_inverse(
    model: ItemInverse, before: Interactions, after: Interactions, *, pair_decay: float, scorer: str
) -> ItemInverse:
    """Return the inverse as if ``after`` had been in the Gram matrix in place of ``before``; the old one stays.

    With E the items of the users concerned and B the change of their part of the Gram matrix, Woodbury gives
    (G + E B Eᵀ)⁻¹ = P − P_E (I + B P_EE)⁻¹ B P_Eᵀ. Costs n_items² × |E| multiplications for every step, of which there
    are several where the users touch more than ``MOST_RANK`` of the items.

    scorer: for the message. Raises DataError where an item's support falls below 0: ``before`` was not in the fit;
    InexactError where the users outweigh the others so far that more than ``MOST_LOST`` would be rounding.
    """
    inverse, support, lost = model.inverse.copy(), model.support.copy(), 0.0
    for users in _batches_of_users(before, after, max(1, int(MOST_RANK * len(support)))):
        parts = [of_few_users(events.take(np.isin(events.users, users))) for events in (before, after)]
        touched = np.unique(np.concatenate([part.items for part in parts]))
        touched = touched[touched >= 0]
        grams = [gram_matrix(_on_items(part, touched), pair_decay, dtype=np.float64) for part in parts]
        support[touched] += grams[1][1] - grams[0][1]
        lost += put_in(inverse, touched, (grams[1][0] - grams[0][0]).astype(np.float64))
    if support.min(initial=0.0) < -LEAST_SUPPORT:
        raise not_counted(scorer)
    if not lost <= MOST_LOST:
        raise InexactError(
            f"{scorer} cannot be changed exactly: up to {lost:.1g} of the change would be rounding (at most "
            f"{MOST_LOST:g}), for these users' events outweigh all others'; fit again"
        )
    return replace(model, inverse=inverse, support=support)


def longer_inverse(inverse: FloatArray, n_items: int) -> FloatArray:
    """Copy a matrix into the first rows and columns of one of 0: float32, shape (n_items, n_items)."""
    grown = np.zeros((n_items, n_items), dtype=np.float32)
    grown[: len(inverse), : len(inverse)] = inverse
    return grown


def put_in(inverse: FloatArray, codes: IntArray, change: Float64Array) -> float:
    """Turn M⁻¹ into (M + Δ)⁻¹ in place, where Δ is ``change`` at rows and columns ``codes`` and 0 elsewhere.

    inverse: float32, shape (n, n). codes: distinct. change: symmetric, shape (n_codes, n_codes).
    Returns a bound on the relative error of the change, of first order: the inner matrix (I + Δ M⁻¹)⁻¹ Δ times the
    rounding that M⁻¹ came with.
    """
    columns = inverse[codes].astype(np.float64).T  # rows, for they lie side by side
    try:
        middle = np.linalg.solve(np.eye(len(codes)) + change @ columns[codes], change).astype(np.float64)
    except np.linalg.LinAlgError:  # singular to the last bit
        return np.inf
    _subtract(inverse, columns, middle)
    rounding = HALF_A_BIT * np.abs(columns[codes]).max(initial=0.0)
    return float(rounding * np.abs(middle).sum(axis=1).max(initial=0.0))


HALF_A_BIT = 2.0**-24
"""Greatest relative rounding of a float32."""


def change_rows(inverse: FloatArray, codes: IntArray, change: Float64Array) -> None:
    """Turn M⁻¹ into (M + Δ)⁻¹ in place, where Δ is 0 but for rows and columns ``codes``.

    change: Δ[:, codes], shape (n, n_codes), its own square symmetric. Δ has rank 2 × n_codes: with E the unit columns
    of ``codes`` and A the change with half its square, Δ = E Aᵀ + A Eᵀ.
    """
    n_codes = len(codes)
    half = change.copy()
    half[codes] /= 2
    columns = np.hstack([inverse[codes].astype(np.float64).T, _times(inverse, half)])
    swap = np.zeros((2 * n_codes, 2 * n_codes))
    swap[:n_codes, n_codes:] = swap[n_codes:, :n_codes] = np.eye(n_codes)
    inner = np.vstack([columns[codes], half.T @ columns])
    _subtract(inverse, columns, np.asarray(np.linalg.inv(swap + (inner + inner.T) / 2), dtype=np.float64))


def add_rows(inverse: FloatArray, n_before: int, cross: Float64Array, square: Float64Array) -> None:
    """Turn the inverse of M, in the first n_before rows and columns, into that of [[M, C], [Cᵀ, D]], in place.

    inverse: float32, shape (n, n), n ≥ n_before + n_new; what lies beyond is not touched. cross: C, shape
    (n_before, n_new). square: D, shape (n_new, n_new).
    """
    stop = n_before + len(square)
    old = inverse[:n_before, :n_before]
    columns = _times(old, cross)
    added = np.linalg.inv(square - cross.T @ columns)
    added = (added + added.T) / 2
    _subtract(old, columns, -added)
    inverse[:n_before, n_before:stop] = -columns @ added
    inverse[n_before:stop, :n_before] = inverse[:n_before, n_before:stop].T
    inverse[n_before:stop, n_before:stop] = added


def _subtract(inverse: FloatArray, columns: Float64Array, middle: Float64Array) -> None:
    """Subtract columns · middle · columnsᵀ in place; middle is symmetric, and so the result exactly."""
    left = columns @ ((middle + middle.T) / 2)
    n = len(inverse)
    for start in range(0, n, SQUARE_BLOCK):
        stop = min(start + SQUARE_BLOCK, n)
        inverse[start:stop, start:] -= left[start:stop] @ columns[start:].T
        mirror_upper(inverse, start, stop)


def _times(inverse: FloatArray, columns: Float64Array) -> Float64Array:
    """Multiply in float64 without a copy of the whole matrix."""
    product = np.empty(columns.shape)
    for start in range(0, len(inverse), SQUARE_BLOCK):
        product[start : start + SQUARE_BLOCK] = inverse[start : start + SQUARE_BLOCK].astype(np.float64) @ columns
    return product


def _on_items(past: Interactions, touched: IntArray) -> Interactions:
    """Renumber items by their place among those touched; searches without an item stay."""
    places = np.where(past.items >= 0, np.searchsorted(touched, past.items), past.items)
    return replace(past, items=places, n_items=len(touched))


def _batches_of_users(before: Interactions, after: Interactions, most_items: int) -> Iterator[IntArray]:
    """Cut users into batches that touch at most so many items; a user who touches more makes one alone."""
    users = np.concatenate([before.users, after.users])
    items = np.concatenate([before.items, after.items])
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    parts = np.split(items, starts)[1:]
    batch: list[int] = []
    touched: set[int] = set()
    for user, own in zip(users[starts].tolist(), parts, strict=True):
        more = touched | set(own.tolist())
        if batch and len(more) > most_items:
            yield np.array(batch, dtype=np.int64)
            batch, more = [], set(own.tolist())
        batch.append(user)
        touched = more
    if batch:
        yield np.array(batch, dtype=np.int64)
