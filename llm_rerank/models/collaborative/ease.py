"""EASE (Steck 2019, arXiv:1905.03375): every item regressed on all others in closed form. Dense, up to 20,000 items."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import numpy as np

from llm_rerank.models.changes import check_same_catalogue, codes_to_read, longer
from llm_rerank.models.collaborative.inverse_updates import longer_inverse, revised_inverse
from llm_rerank.models.collaborative.item_inverse import (
    ItemInverse,
    check_catalogue,
    gram_matrix,
    invert_in_place,
)
from llm_rerank.models.scoring import score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

_FILE = "ease.safetensors"


class EASE:
    """Score of item j = Σ_i h_i B_ij, with B = argmin ‖X − XB‖² + λ‖B‖² under B_jj = 0.

    B_ij = −P_ij / P_jj with P = (XᵀX + λI)⁻¹; h is the history, faded by ``decay`` a visit.

    regularization: λ, in squared event weights; more users and denser data want more (50 for thin data, 300 and up for
    wholesale baskets). decay: read when scoring, so it may be changed after the fit.
    Scores: NaN for items without any event in the fit, and for histories without a known item.

    Memory: n_items² × 4 bytes (77 MB at 4,385 items). Raises DataError above 20,000 items.

    ``revised`` and ``grown`` work on a copy of the matrix; each rounds it to float32 once more.
    """

    name = "ease"
    depends_on_list = False
    revises_cheaply = False  # n_items² numbers change

    def __init__(self, *, regularization: float = 50.0, decay: float = 0.15) -> None:
        if not regularization > 0:
            raise DataError(f"regularization is {regularization}; it must be above 0, for example 50")
        if not decay >= 0:
            raise DataError(f"decay is {decay}; it must be 0 or more, for example 0.15 a visit")
        self.regularization = regularization
        self.decay = decay
        self._model: ItemInverse | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Build the Gram matrix and invert it; nothing is drawn at random."""
        check_catalogue(self.name, past.n_items)
        gram, support = gram_matrix(past, pair_decay=0.0)
        gram[np.diag_indices_from(gram)] += np.float32(self.regularization)
        inverse = invert_in_place(gram, least_eigenvalue=self.regularization)
        self._model = ItemInverse(inverse, support, np.zeros(past.n_items, dtype=np.bool_))
        return self

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer as if ``after`` had been fitted in place of ``before``, all events of the same users.

        Exact but for rounding; what it costs and raises is said at ``revised_inverse``.
        """
        model = self._fitted()
        check_same_catalogue(self.name, before, after, len(model.support))
        revised = copy.copy(self)
        revised._model = revised_inverse(model, before, after, pair_decay=0.0, scorer=self.name)
        return revised

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; new items have no events, so their scores are NaN.

        Exact: an item without events stands in no relation to another. The catalogue may outgrow 20,000 items here.
        """
        model = self._fitted()
        n_before, n_items = len(model.support), len(items)
        codes_to_read(n_before, items, changed)
        inverse = longer_inverse(model.inverse, n_items)
        new = np.arange(n_before, n_items)
        inverse[new, new] = 1 / self.regularization
        grown = copy.copy(self)
        grown._model = ItemInverse(
            inverse, longer(model.support, n_items, 0.0), longer(model.has_text, n_items, fill=False)
        )
        return grown

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        return self._fitted().catalogue_scores(cases, decay=self.decay, exponent=0.0)

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file of n_items² × 4 bytes."""
        model = self._fitted()
        settings = {"regularization": self.regularization, "decay": self.decay}
        write_arrays(folder / _FILE, {"inverse": model.inverse, "support": model.support}, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings)
        scorer._model = ItemInverse(
            arrays["inverse"], arrays["support"], np.zeros(len(arrays["support"]), dtype=np.bool_)
        )
        return scorer

    def _fitted(self) -> ItemInverse:
        if self._model is None:
            raise NotFittedError("ease has no weights yet; call fit or load first")
        return self._model
