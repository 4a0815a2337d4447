"""What every scorer needs to be changed without a fit: events and codes checked, arrays and rows lengthened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from llm_rerank.types import DataError, IntArray, Interactions, Items


def check_same_catalogue(scorer: str, before: Interactions, after: Interactions, n_items: int) -> None:
    """Raise DataError where events are of another catalogue than the scorer's. scorer: its name, for the message."""
    for events in (before, after):
        if events.n_items != n_items:
            raise DataError(f"events are of {events.n_items} items, {scorer} knows {n_items}; call grown first")


def not_counted(scorer: str) -> DataError:
    """Make the error for events that cannot be taken out."""
    return DataError(f"before holds events that {scorer} has not counted; give what was in the fit, or fit again")


def of_few_users(past: Interactions) -> Interactions:
    """Renumber users so that only those with events are left: what follows costs nothing for the others."""
    kept, users = np.unique(past.users, return_inverse=True)
    return replace(past, user_ids=past.user_ids[kept], user_rows=past.user_rows[kept], users=users.astype(np.int64))


def codes_to_read(n_before: int, items: Items, changed: IntArray) -> IntArray:
    """Return the changed codes, distinct and rising: int64, shape (n_changed,).

    n_before: items that the scorer knows.
    Raises DataError where items are fewer than before, a code is outside them, or a new item is not among ``changed``.
    """
    if len(items) < n_before:
        raise DataError(
            f"grown was given {len(items)} items; there were {n_before}, and items keep their codes: give all"
        )
    codes = np.unique(np.asarray(changed, dtype=np.int64))
    if len(codes) and not (0 <= codes[0] and codes[-1] < len(items)):
        raise DataError(
            f"changed holds code {codes[0] if codes[0] < 0 else codes[-1]}; codes are 0 to {len(items) - 1}"
        )
    if np.count_nonzero(codes >= n_before) < len(items) - n_before:
        missing = np.setdiff1d(np.arange(n_before, len(items)), codes)[0]
        raise DataError(f"changed lacks the new item {missing}; name every code from {n_before} on, its text is new")
    return codes


def texts_of(items: Items, codes: IntArray) -> list[str]:
    """Texts of these items, in the order given."""
    return [str(text) for text in items.texts[codes]]


def longer(array: np.ndarray, n_rows: int, fill: Any) -> np.ndarray:
    """Copy an array and lengthen it to n_rows rows; new rows are ``fill``. dtype stays."""
    grown = np.full((n_rows, *array.shape[1:]), fill, dtype=array.dtype)
    grown[: len(array)] = array
    return grown


def with_rows(array: np.ndarray, n_rows: int, codes: IntArray, rows: npt.ArrayLike) -> np.ndarray:
    """Copy an array, lengthen it to n_rows rows, and put ``rows`` where ``codes`` say."""
    grown = longer(array, n_rows, 0)
    grown[codes] = rows
    return grown


def longer_sparse(matrix: csr_matrix, n_rows: int, n_columns: int) -> csr_matrix:
    """Return the matrix with empty rows and columns added up to this shape; shares the entries with the old one."""
    ends = np.full(n_rows - matrix.shape[0], matrix.indptr[-1], dtype=matrix.indptr.dtype)
    return csr_matrix((matrix.data, matrix.indices, np.concatenate([matrix.indptr, ends])), shape=(n_rows, n_columns))
