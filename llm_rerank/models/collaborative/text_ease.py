"""Text-aware EASE: EASE whose Gram matrix also holds how alike the items' texts are. Scores items nobody took yet."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import numpy as np

from llm_rerank.models.changes import check_same_catalogue, codes_to_read, longer
from llm_rerank.models.collaborative.inverse_updates import add_rows, change_rows, longer_inverse, revised_inverse
from llm_rerank.models.collaborative.item_inverse import (
    ItemInverse,
    check_catalogue,
    gram_matrix,
    invert_in_place,
)
from llm_rerank.models.collaborative.text_kernel import TextKernel
from llm_rerank.models.scoring import score_candidates
from llm_rerank.models.semantic.encoder import check_same_encoder, encoder_reference, load_encoder
from llm_rerank.models.semantic.text_features import TextFeatures, texts_and_titles
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
)

_FILE = "text_ease.safetensors"
_TEXTS_FILE = "texts.safetensors"
_TEXTS_AT_ONCE = 256
"""Texts that enter or change the matrix in one step: memory n_items × 2 × this × 8 bytes."""
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

    ``grown`` compares new texts by the measure of the fit: how rare a term is and how vectors are whitened stay as
    they were. Each change works on a copy of the matrix and rounds it to float32 once more.
    """

    name = "text_ease"
    depends_on_list = False
    revises_cheaply = False  # n_items² numbers change

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
        self._reference: dict[str, Any] | None = None  # of the encoder; None: fitted without
        self._features: TextFeatures | None = None
        self._model: ItemInverse | None = None

    @property
    def encoder(self) -> Encoder | None:
        """Encoder of the kernel; after ``load`` None until a text is to be read, or until it is given."""
        return self._kernel.encoder

    @encoder.setter
    def encoder(self, encoder: Encoder | None) -> None:
        self._kernel = TextKernel(encoder)

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Add the Gram matrix and the kernel up, and invert; nothing is drawn at random."""
        check_catalogue(self.name, past.n_items)
        similarities = self._kernel.matrix(items)
        gram, support = gram_matrix(past, self.pair_decay)
        for row, similar in zip(gram, similarities, strict=True):  # row by row: no third matrix in memory
            row += np.float32(self.text_weight) * similar
        gram[np.diag_indices_from(gram)] += np.float32(self.regularization)
        inverse = invert_in_place(gram, least_eigenvalue=self.regularization)
        self._features = self._kernel.features(items)
        self._reference = None if self.encoder is None else encoder_reference(self.encoder)
        self._model = ItemInverse(inverse, support, self._features.has_text)
        return self

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer as if ``after`` had been fitted in place of ``before``, all events of the same users.

        Exact but for rounding; what it costs and raises is said at ``revised_inverse``.
        """
        model = self._fitted()
        check_same_catalogue(self.name, before, after, len(model.support))
        revised = self._copy()
        revised._model = revised_inverse(model, before, after, pair_decay=self.pair_decay, scorer=self.name)
        return revised

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, whose changed texts are read anew; new items are scored by text.

        Exact for the measure of the fit (see the class). Costs n_items² × 2 × n_changed multiplications. The catalogue
        may outgrow 20,000 items here.
        Raises StorageError where the encoder of the fit cannot be loaded, or another one was given.
        """
        model, features = self._fitted(), self._features
        assert features is not None
        n_before, n_items = len(model.support), len(items)
        codes = codes_to_read(n_before, items, changed)
        inverse = longer_inverse(model.inverse, n_items)
        encoder = self._encoder_of_fit() if len(codes) else None
        old, new = codes[codes < n_before], codes[codes >= n_before]
        for part in _cut(old):
            earlier, features = features, features.with_texts(part, *texts_and_titles(items, part), encoder)
            change = self.text_weight * (features.columns(part) - earlier.columns(part))
            change_rows(inverse[:n_before, :n_before], part, change)
        for part in _cut(new):
            features = features.with_texts(part, *texts_and_titles(items, part), encoder)
            columns = self.text_weight * features.columns(part)
            columns[part, np.arange(len(part))] += self.regularization
            add_rows(inverse, int(part[0]), columns[: part[0]], columns[part[0] :])
        grown = self._copy()
        grown._features = features
        grown._model = ItemInverse(inverse, longer(model.support, n_items, 0.0), features.has_text)
        return grown

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        return self._fitted().catalogue_scores(cases, decay=self.decay, exponent=self.support_exponent)

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write a file of n_items² × 4 bytes, and one of the texts' hashed terms and vectors; not the encoder."""
        model, features = self._fitted(), self._features
        assert features is not None
        arrays: dict[str, np.ndarray] = {"inverse": model.inverse, "support": model.support}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        write_arrays(folder / _FILE, arrays, {"settings": settings, "encoder": self._reference})
        write_arrays(folder / _TEXTS_FILE, features.to_arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote. The encoder is not loaded before new texts come."""
        arrays, metadata = read_arrays(folder / _FILE)
        scorer = cls(**metadata["settings"])
        scorer._reference = metadata["encoder"]
        scorer._features = TextFeatures.from_arrays(read_arrays(folder / _TEXTS_FILE)[0])
        scorer._model = ItemInverse(arrays["inverse"], arrays["support"], scorer._features.has_text)
        return scorer

    def _copy(self) -> Self:
        """Copy but for the matrix of the fit's texts, which a kernel keeps for further fits."""
        copied = copy.copy(self)
        copied._kernel = TextKernel(self.encoder)
        return copied

    def _encoder_of_fit(self) -> Encoder | None:
        if self._reference is None:
            return None
        if self.encoder is None:
            self.encoder = load_encoder(self._reference)
        assert self.encoder is not None
        check_same_encoder(self.encoder, self._reference)
        return self.encoder

    def _fitted(self) -> ItemInverse:
        if self._model is None:
            raise NotFittedError("text_ease has no weights yet; call fit or load first")
        return self._model


def _cut(codes: IntArray) -> list[IntArray]:
    return [codes[start : start + _TEXTS_AT_ONCE] for start in range(0, len(codes), _TEXTS_AT_ONCE)]
