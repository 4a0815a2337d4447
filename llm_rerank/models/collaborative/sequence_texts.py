"""What the sequence nets read of an item's text: an encoder's vector, or word and character counts reduced to a few.

Both are of unit length, and both can be computed later for a text that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from llm_rerank.models.semantic.text_features import TermWeights, TextFeatures, has_text, texts_and_titles
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.models.unit_length import unit_rows
from llm_rerank.types import Encoder, FloatArray, IntArray, Items

REDUCED_SIZE = 128
MOST_TERMS = 65_536
"""Terms that a reduction keeps, those in most texts first: at most 33 MB."""

LEAST_TEXTS = 2
"""A term in one text alone says nothing about any other."""

_TABLE = 2**20  # hashed terms of one analyzer


@dataclass(frozen=True)
class EncodedTexts:
    """An encoder's vectors of whole texts, whitened, the main directions first. reference: for ``load_encoder``."""

    whitening: Whitening
    reference: Mapping[str, Any]

    @classmethod
    def fit(cls, items: Items, encoder: Encoder) -> tuple[Self, FloatArray]:
        """Learn what the shop's texts have in common; also the items' vectors: float32, shape (n_items, size)."""
        from llm_rerank.models.semantic.encoder import encoder_reference

        texts, _ = texts_and_titles(items)
        vectors = encoder.encode(texts)
        vectors[~has_text(texts)] = 0  # an encoder of one's own may have a vector for a blank too
        whitening = Whitening.fit(vectors)
        # its directions come by rising variance
        whitening = Whitening(whitening.mean, np.ascontiguousarray(whitening.matrix[:, ::-1]))
        return cls(whitening, encoder_reference(encoder)), whitening.apply(vectors)

    def vectors(self, items: Items, codes: IntArray, encoder: Encoder | None) -> FloatArray:
        """Vectors of these items' texts: float32, shape (n_codes, size); zero where there is no text.

        encoder: None: the one of the fit is loaded. Raises StorageError where that cannot be, or for another encoder.
        """
        from llm_rerank.models.semantic.encoder import check_same_encoder, load_encoder

        if encoder is None:
            encoder = load_encoder(self.reference)
        check_same_encoder(encoder, self.reference)
        texts, _ = texts_and_titles(items, codes)
        vectors = encoder.encode(texts)
        vectors[~has_text(texts)] = 0
        return self.whitening.apply(vectors)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Give the arrays to write, by name."""
        return {"text.mean": self.whitening.mean, "text.whitening": self.whitening.matrix}


@dataclass(frozen=True)
class CountedTexts:
    """TF-IDF of words and of titles' characters, side by side, in the main directions of the fit's texts.

    Not whitened, unlike an encoder's: the lesser directions of counts are noise (docs/lab-notebook.md).

    words, characters: weights of the fit's terms. terms: int64, rising, columns that are kept (characters 2^20 on).
    components: float32, shape (n_terms, size), the right singular vectors of the fit's table.
    """

    words: TermWeights
    characters: TermWeights
    terms: IntArray
    components: FloatArray

    @classmethod
    def fit(cls, items: Items, *, seed: int) -> tuple[Self, FloatArray]:
        """Learn the directions by truncated SVD; also the items' vectors: float32, shape (n_items, size)."""
        from scipy.sparse import csc_matrix, hstack
        from sklearn.utils.extmath import randomized_svd

        features = TextFeatures.fit(*texts_and_titles(items), None)
        table = csc_matrix(hstack([features.words, features.characters]))
        n_texts = np.diff(table.indptr)
        terms = np.flatnonzero(n_texts >= LEAST_TEXTS)
        if len(terms) > MOST_TERMS:
            terms = np.sort(terms[np.argsort(-n_texts[terms], kind="stable")[:MOST_TERMS]])
        kept = table[:, terms].tocsr()
        size = min(REDUCED_SIZE, *kept.shape)
        if size:
            _, _, directions = randomized_svd(kept, n_components=size, random_state=seed)
        else:
            directions = np.empty((0, len(terms)))
        components = np.ascontiguousarray(directions.T, dtype=np.float32)
        counted = cls(features.word_weights, features.character_weights, terms.astype(np.int64), components)
        return counted, unit_rows(kept @ components)

    def vectors(self, items: Items, codes: IntArray, encoder: Encoder | None = None) -> FloatArray:
        """Vectors of these items' texts: float32, shape (n_codes, size); zero where there is no known term."""
        from scipy.sparse import csr_matrix, diags_array, hstack

        if not len(codes):  # the vectorizer takes no empty list
            return np.empty((0, self.components.shape[1]), dtype=np.float32)
        texts, titles = texts_and_titles(items, codes)
        table = hstack([self.words.vectors(texts, "word"), self.characters.vectors(titles, "char_wb")], format="csc")
        known = diags_array(has_text(texts).astype(np.float32))
        kept = csr_matrix(known @ table[:, self.terms])
        return unit_rows(kept @ self.components)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Give the arrays to write, by name; they hold hashes of terms, no words."""
        arrays: dict[str, np.ndarray] = {"text.terms": self.terms, "text.components": self.components}
        for name, weights in (("words", self.words), ("characters", self.characters)):
            arrays |= {
                f"text.{name}.terms": weights.terms,
                f"text.{name}.idf": weights.idf,
                f"text.{name}.unseen": np.array(weights.unseen),
            }
        return arrays


Texts = EncodedTexts | CountedTexts


def texts_from_arrays(arrays: Mapping[str, np.ndarray], reference: Mapping[str, Any] | None) -> Texts | None:
    """Read what ``to_arrays`` gave; None where no text was read. reference: of the encoder, None without one."""
    if "text.mean" in arrays:
        return EncodedTexts(Whitening(arrays["text.mean"], arrays["text.whitening"]), reference or {})
    if "text.terms" not in arrays:
        return None
    words, characters = (
        TermWeights(
            arrays[f"text.{name}.terms"].astype(np.int32),
            arrays[f"text.{name}.idf"],
            float(arrays[f"text.{name}.unseen"]),
        )
        for name in ("words", "characters")
    )
    return CountedTexts(words, characters, arrays["text.terms"], arrays["text.components"])
