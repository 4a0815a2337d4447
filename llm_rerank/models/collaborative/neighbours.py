"""User-kNN: what the users with the most alike histories took. Sparse; keeps the fit's histories, without user ids."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from scipy.sparse import csr_matrix, diags_array

from llm_rerank.models.collaborative.item_item import SUPPORT_OFFSET, keep_largest
from llm_rerank.models.scoring import history_matrix, interaction_matrix, score_candidates
from llm_rerank.storage import read_arrays, sparse_arrays, sparse_from, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, Interactions, Items, NotFittedError

_FILE = "user_knn.safetensors"


def unit_rows(matrix: csr_matrix) -> csr_matrix:
    """Scale each row to unit length; empty rows stay empty. Returns float32 CSR."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), dtype=np.float64).ravel())
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return csr_matrix(diags_array(scale.astype(np.float32)) @ matrix)


class UserKNN:
    """Score of item j = (n_j + 3)^−candidate_exponent × Σ_u similarity_u × w_uj over the most similar users u.

    Similarity is the cosine of histories whose items weigh log(n_users / n_i): two users who share a rare item are
    more alike than two who share a best seller. The case's own history fades by ``decay`` a visit, the others' do not.
    n: number of users with the item. n_neighbours: users in the sum.

    Scores: 0 where no neighbour took the item; NaN for items without any event in the fit, and for histories without
    a known item. A user who was in the fit is their own nearest neighbour, which adds to the items they had and to no
    other. Known limit: time a case grows with the users who share an item with it; the saved file holds users'
    histories (no ids), so forgetting a user needs a refit.
    """

    name = "user_knn"
    depends_on_list = False

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
        histories = interaction_matrix(past)
        histories = histories[np.diff(histories.indptr) > 0]
        n_takers = np.bincount(histories.indices, minlength=past.n_items)
        # 1 + n: an item that all users took keeps a small weight, so that it is still known
        rarity = np.log((1 + histories.shape[0]) / np.maximum(n_takers, 1))
        self._set(csr_matrix(histories), np.where(n_takers > 0, rarity, 0).astype(np.float32))
        return self

    def _set(self, histories: csr_matrix, rarity: FloatArray) -> None:
        self._histories, self._rarity = histories, rarity
        self._directions = csr_matrix(unit_rows(csr_matrix(histories @ diags_array(rarity))).T)

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        if self._histories is None or self._directions is None or self._rarity is None:
            raise NotFittedError("user_knn has no users yet; call fit or load first")
        history = history_matrix(cases, len(self._rarity), decay=self.decay)
        similarities = csr_matrix(unit_rows(csr_matrix(history @ diags_array(self._rarity))) @ self._directions)
        similarities.sort_indices()
        scores = (keep_largest(similarities, self.n_neighbours) @ self._histories).toarray()
        n_takers = np.bincount(self._histories.indices, minlength=len(self._rarity))
        scores *= ((n_takers + SUPPORT_OFFSET) ** -self.candidate_exponent).astype(np.float32)
        scores[:, n_takers == 0] = np.nan
        scores[history @ (n_takers > 0).astype(np.float32) == 0] = np.nan
        return scores

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        if self._histories is None or self._rarity is None:
            raise NotFittedError("user_knn has no users yet; call fit or load first")
        settings = {
            "n_neighbours": self.n_neighbours,
            "decay": self.decay,
            "candidate_exponent": self.candidate_exponent,
        }
        arrays = {"rarity": self._rarity, **sparse_arrays(self._histories, "histories")}
        write_arrays(folder / _FILE, arrays, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings)
        scorer._set(sparse_from(arrays, "histories"), arrays["rarity"])
        return scorer
