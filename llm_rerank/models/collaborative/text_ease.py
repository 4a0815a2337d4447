"""Text-aware EASE: EASE whose Gram matrix also holds how alike the items' texts are. Scores items nobody took yet."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from llm_rerank.models.collaborative.item_inverse import (
    ItemInverse,
    check_catalogue,
    gram_matrix,
    invert_in_place,
)
from llm_rerank.models.collaborative.text_kernel import TextKernel, has_text
from llm_rerank.models.scoring import score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import (
    Cases,
    DataError,
    Encoder,
    FloatArray,
    IntArray,
    Interactions,
    Items,
    NotFittedError,
    Ragged,
)

_FILE = "text_ease.safetensors"
_SETTINGS = ("regularization", "text_weight", "decay", "pair_decay", "support_exponent")


class TextAwareEASE:
    """Score of item j = (n_j + 3)^support_exponent × −Σ_{i ≠ j} h_i P_ij / P_jj, with P = (G + αK + λI)⁻¹.

    G: the users' Gram matrix, pairs faded by ``pair_decay`` a visit apart. K: ``TextKernel``. h: the history, faded by
    ``decay`` a visit. n: support. The text acts as that many more users who took items because they read alike; where
    behaviour is dense it is outvoted, and an item without any event is scored by its text alone.

    regularization: λ. text_weight: α, in users a pair of items with equal text. encoder: its vectors join the kernel.
    kernel: share one object between scorers to compute it once; then ``encoder`` must not be given.
    decay, support_exponent: read when scoring, so they may be changed after the fit.
    Scores: NaN for items with neither text nor events, and for histories without a known item.

    Memory: while fitting 2 × n_items² × 4 bytes (kernel and inverse; 154 MB at 4,385 items, 3.2 GB at 20,000), then
    half. Raises DataError above 20,000 items, or where no item has text.
    """

    name = "text_ease"
    depends_on_list = False

    def __init__(
        self,
        *,
        regularization: float = 80.0,
        text_weight: float = 7.0,
        decay: float = 0.2,
        pair_decay: float = 0.1,
        support_exponent: float = 0.1,
        encoder: Encoder | None = None,
        kernel: TextKernel | None = None,
    ) -> None:
        if not regularization > 0:
            raise DataError(f"regularization is {regularization}; it must be above 0, for example 80")
        for name, value in (("text_weight", text_weight), ("decay", decay), ("pair_decay", pair_decay)):
            if not value >= 0:
                raise DataError(f"{name} is {value}; it must be 0 or more")
        if encoder is not None and kernel is not None:
            raise DataError("encoder and kernel are both given; give the encoder to the kernel: TextKernel(encoder)")
        self.regularization = regularization
        self.text_weight = text_weight
        self.decay = decay
        self.pair_decay = pair_decay
        self.support_exponent = support_exponent
        self._kernel = TextKernel(encoder) if kernel is None else kernel
        self._model: ItemInverse | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Add the Gram matrix and the kernel up, and invert; nothing is drawn at random."""
        check_catalogue(self.name, past.n_items)
        similarities = self._kernel.matrix(items)
        gram, support = gram_matrix(past, self.pair_decay)
        for row, similar in zip(gram, similarities, strict=True):  # row by row: no third matrix in memory
            row += np.float32(self.text_weight) * similar
        gram[np.diag_indices_from(gram)] += np.float32(self.regularization)
        inverse = invert_in_place(gram, least_eigenvalue=self.regularization)
        self._model = ItemInverse(inverse, support, has_text(items.texts))
        return self

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        return self._fitted().catalogue_scores(cases, decay=self.decay, exponent=self.support_exponent)

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def score_without_user(
        self,
        cases: Cases,
        contributed: Ragged,
        *,
        weights: FloatArray | None = None,
        times: IntArray | None = None,
    ) -> FloatArray:
        """Scores as if each case's user had not been in the fit; exact, see ``ItemInverse.scores_without_user``.

        contributed: items that the user brought to the fit, oldest first, one row a case.
        weights: float32, times: int64, shape (n_contributed,), of those events. Without them each event weighs 1 and
        is a visit of its own, which is exact where that is so.
        Returns float32, shape (n_candidates,).
        """
        return self._fitted().scores_without_user(
            cases,
            contributed,
            weights,
            times,
            decay=self.decay,
            pair_decay=self.pair_decay,
            exponent=self.support_exponent,
        )

    def save(self, folder: Path) -> None:
        """Write one file of n_items² × 4 bytes; not the kernel and its encoder, which a new fit needs again."""
        model = self._fitted()
        arrays = {"inverse": model.inverse, "support": model.support, "has_text": model.has_text}
        write_arrays(folder / _FILE, arrays, {name: getattr(self, name) for name in _SETTINGS})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings)
        scorer._model = ItemInverse(arrays["inverse"], arrays["support"], arrays["has_text"])
        return scorer

    def _fitted(self) -> ItemInverse:
        if self._model is None:
            raise NotFittedError("text_ease has no weights yet; call fit or load first")
        return self._model
