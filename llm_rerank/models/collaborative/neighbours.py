"""User-kNN: what the users with the most alike histories took. Sparse; keeps the fit's histories, without user ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import numpy as np
from scipy.sparse import csr_matrix, diags_array, vstack

from llm_rerank.models.changes import (
    check_same_catalogue,
    codes_to_read,
    longer,
    longer_sparse,
    not_counted,
    of_few_users,
)
from llm_rerank.models.collaborative.item_item import SUPPORT_OFFSET, keep_largest
from llm_rerank.models.scoring import history_matrix, interaction_matrix, score_candidates
from llm_rerank.models.unit_length import unit_sparse_rows
from llm_rerank.storage import read_arrays, sparse_arrays, sparse_from, write_arrays
from llm_rerank.types import BoolArray, Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

_FILE = "user_knn.safetensors"


class UserKNN:
    """Score of item j = (n_j + 3)^−candidate_exponent × Σ_u similarity_u × w_uj over the most similar users u.

    Similarity is the cosine of histories whose items weigh log(n_users / n_i): two users who share a rare item are
    more alike than two who share a best seller. The case's own history fades by ``decay`` a visit, the others' do not.
    n: number of users with the item. n_neighbours: users in the sum.

    Scores: 0 where no neighbour took the item; NaN for items without any event in the fit, and for histories without
    a known item. A user who was in the fit is their own nearest neighbour, which adds to the items they had and to no
    other. Known limit: time a case grows with the users who share an item with it. The saved file holds users'
    histories, without ids: ``revised`` takes out one that equals the user's. It equals a fit, but for which of two
    equally similar users is the last of the ``n_neighbours``.
    """

    name = "user_knn"
    depends_on_list = False
    revises_cheaply = False  # every user's direction changes with the items' rarity

    def __init__(self, *, n_neighbours: int = 200, decay: float = 0.2, candidate_exponent: float = 0.1) -> None:
        if n_neighbours < 1:
            raise DataError(f"n_neighbours is {n_neighbours}; it must be at least 1")
        if not decay >= 0:
            raise DataError(f"decay is {decay}; it must be 0 or more, for example 0.2 a visit")
        self.n_neighbours = n_neighbours
        self.decay = decay
        self.candidate_exponent = candidate_exponent
        self._histories: csr_matrix | None = None  # users × items, as they were
        self._directions: csr_matrix | None = None  # items × users, weighted, unit length a user
        self._rarity: FloatArray | None = None  # weight of an item in a similarity; 0 where nobody took it

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Keep the histories; nothing is drawn at random."""
        histories = kept_histories(past)
        self._set(histories, rarity_of(histories))
        return self

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer that holds the users' histories of ``after`` in place of those of ``before``.

        Costs one pass over all histories. Raises DataError where one of ``before`` is not held.
        """
        histories = self._fitted()
        check_same_catalogue(self.name, before, after, histories.shape[1])
        kept = np.ones(histories.shape[0], dtype=np.bool_)
        old = kept_histories(of_few_users(before))
        for row in range(old.shape[0]):
            kept[equal_row(histories, old, row, kept)] = False
        changed = csr_matrix(vstack([histories[kept], kept_histories(of_few_users(after))], format="csr"))
        revised = copy.copy(self)
        revised._set(changed, rarity_of(changed))
        return revised

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; new items have no events, so their scores are NaN."""
        histories = self._fitted()
        codes_to_read(histories.shape[1], items, changed)
        assert self._rarity is not None and self._directions is not None
        grown = copy.copy(self)
        grown._histories = longer_sparse(histories, histories.shape[0], len(items))
        grown._directions = longer_sparse(self._directions, len(items), histories.shape[0])
        grown._rarity = longer(self._rarity, len(items), 0.0)
        return grown

    def _set(self, histories: csr_matrix, rarity: FloatArray) -> None:
        self._histories, self._rarity = histories, rarity
        self._directions = csr_matrix(unit_sparse_rows(csr_matrix(histories @ diags_array(rarity))).T)

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        histories = self._fitted()
        assert self._rarity is not None and self._directions is not None
        n_takers = np.bincount(histories.indices, minlength=len(self._rarity))
        history = history_matrix(cases, len(self._rarity), decay=self.decay, readable=n_takers > 0)
        similarities = csr_matrix(unit_sparse_rows(csr_matrix(history @ diags_array(self._rarity))) @ self._directions)
        similarities.sort_indices()
        scores = (keep_largest(similarities, self.n_neighbours) @ histories).toarray()
        scores *= ((n_takers + SUPPORT_OFFSET) ** -self.candidate_exponent).astype(np.float32)
        scores[:, n_takers == 0] = np.nan
        scores[np.diff(history.indptr) == 0] = np.nan
        return scores

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        histories = self._fitted()
        assert self._rarity is not None
        settings = {
            "n_neighbours": self.n_neighbours,
            "decay": self.decay,
            "candidate_exponent": self.candidate_exponent,
        }
        arrays = {"rarity": self._rarity, **sparse_arrays(histories, "histories")}
        write_arrays(folder / _FILE, arrays, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings)
        scorer._set(sparse_from(arrays, "histories"), arrays["rarity"])
        return scorer

    def _fitted(self) -> csr_matrix:
        if self._histories is None:
            raise NotFittedError("user_knn has no users yet; call fit or load first")
        return self._histories


def kept_histories(past: Interactions) -> csr_matrix:
    """Liked items of the users who have any: float32 CSR, shape (n_users with any, n_items)."""
    histories = interaction_matrix(past)
    return csr_matrix(histories[np.diff(histories.indptr) > 0])


def rarity_of(histories: csr_matrix) -> FloatArray:
    """Weigh each item for similarities: float32, shape (n_items,); 0 where nobody took it."""
    n_takers = np.bincount(histories.indices, minlength=histories.shape[1])
    # 1 + n: an item that all users took keeps a small weight, so that it is still known
    rarity = np.log((1 + histories.shape[0]) / np.maximum(n_takers, 1))
    return np.where(n_takers > 0, rarity, 0).astype(np.float32)


def equal_row(matrix: csr_matrix, wanted: csr_matrix, row: int, usable: BoolArray) -> int:
    """Find a row of ``matrix`` that equals row ``row`` of ``wanted``, among the usable ones (bool, shape (n_rows,)).

    Both have sorted indices. Raises DataError where there is none.
    """
    part = slice(*wanted.indptr[row : row + 2])
    items, weights = wanted.indices[part], wanted.data[part]
    alike = np.flatnonzero(usable & (np.diff(matrix.indptr) == len(items)))
    places = matrix.indptr[alike][:, None] + np.arange(len(items))
    equal = (matrix.indices[places] == items).all(axis=1) & (matrix.data[places] == weights).all(axis=1)
    if not equal.any():
        raise not_counted("user_knn")
    return int(alike[equal.argmax()])
