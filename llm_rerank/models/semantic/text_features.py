"""Items' texts as numbers that can be compared: counts of words and of letters, and an encoder's vectors.

Word TF-IDF of the whole text sees what an item is about; character n-grams of the title see part numbers, inflections,
and languages without spaces; whitened encoder vectors see meaning. The measure of the fit is kept, so that later texts
are compared by the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from llm_rerank.models.changes import with_rows
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.storage import sparse_arrays, sparse_from
from llm_rerank.types import BoolArray, DataError, Encoder, FloatArray, IntArray, Items

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Analyzer = Literal["word", "char_wb"]


@dataclass(frozen=True)
class TermWeights:
    """Inverse document frequencies of the hashed terms that a fit has seen.

    terms: int32, rising. idf: float32, of each. unseen: of all other terms.
    """

    terms: npt.NDArray[np.int32]
    idf: FloatArray
    unseen: float

    def of(self, terms: npt.NDArray[np.int32]) -> FloatArray:
        """Weights of terms, seen or not: float32, same shape."""
        weights = np.full(terms.shape, self.unseen, dtype=np.float32)
        if len(self.terms):
            places = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
            seen = self.terms[places] == terms
            weights[seen] = self.idf[places[seen]]
        return weights

    def vectors(self, texts: Sequence[str], analyzer: Analyzer) -> csr_matrix:
        """TF-IDF of texts by these weights: float32 CSR, rows of unit length, or empty."""
        counts = _term_counts(texts, analyzer)
        counts.data = (1 + np.log(counts.data)) * self.of(counts.indices)
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        lengths = np.sqrt(np.bincount(rows, weights=counts.data.astype(np.float64) ** 2, minlength=counts.shape[0]))
        counts.data = (counts.data / lengths[rows]).astype(np.float32)
        return counts


@dataclass(frozen=True)
class TextFeatures:
    """What a kernel's matrix is made of, an item a row, and the measure of the fit, by which later texts are compared.

    words, characters: float32 CSR, shape (n_items, 2^20), hashed terms; rows of unit length, empty without text.
    word_weights, character_weights: of the fit's texts. vectors: float32, shape (n_items, size), whitened by
    ``whitening``; both None without an encoder. has_text: bool, shape (n_items,).
    """

    words: csr_matrix
    characters: csr_matrix
    word_weights: TermWeights
    character_weights: TermWeights
    vectors: FloatArray | None
    whitening: Whitening | None
    has_text: BoolArray

    @classmethod
    def fit(cls, texts: Sequence[str], titles: Sequence[str], encoder: Encoder | None) -> Self:
        """Learn the measure from these texts, and take them apart by it."""
        known = has_text(texts)
        words, word_weights = _tf_idf(texts, "word")
        # titles: of whole texts the n-grams cost eight times as much and rank no better (docs/lab-notebook.md)
        characters, character_weights = _tf_idf(titles, "char_wb")
        vectors = whitening = None
        if encoder is not None:
            vectors = text_vectors(encoder, texts)
            whitening = Whitening.fit(vectors)
            vectors = whitening.apply(vectors)
        return cls(
            _only(words, known), _only(characters, known), word_weights, character_weights, vectors, whitening, known
        )

    def __len__(self) -> int:
        return len(self.has_text)

    def matrix(self) -> FloatArray:
        """Mean of the kernels over all items: float32, shape (n_items, n_items)."""
        total = np.zeros((len(self), len(self)), dtype=np.float32)
        for part in self._parts():
            add_similarities(total, part)
        total /= np.float32(len(self._parts()))
        return total

    def columns(self, codes: IntArray) -> npt.NDArray[np.float64]:
        """Columns of ``matrix``: float64, shape (n_items, n_codes)."""
        total = np.zeros((len(self), len(codes)))
        for part in self._parts():
            product = part @ part[codes].T
            total += product if isinstance(product, np.ndarray) else product.toarray()
        return total / len(self._parts())

    def with_texts(
        self, codes: IntArray, texts: Sequence[str], titles: Sequence[str], encoder: Encoder | None
    ) -> TextFeatures:
        """Return features in which these items, old or next in the row, have these texts; the measure stays.

        Raises DataError where an encoder is needed and not given.
        """
        known = has_text(texts)
        n_items = max(len(self), int(codes.max(initial=-1)) + 1)
        vectors = None
        if self.vectors is not None and self.whitening is not None:
            if encoder is None:
                raise DataError("these texts were compared by an encoder's vectors too; give the encoder of the fit")
            fresh = self.whitening.apply(text_vectors(encoder, texts))
            vectors = with_rows(self.vectors, n_items, codes, fresh)
        words, characters = self.word_weights.vectors(texts, "word"), self.character_weights.vectors(titles, "char_wb")
        return replace(
            self,
            words=_with_sparse_rows(self.words, n_items, codes, _only(words, known)),
            characters=_with_sparse_rows(self.characters, n_items, codes, _only(characters, known)),
            vectors=vectors,
            has_text=with_rows(self.has_text, n_items, codes, known),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Give the arrays to write, by name; they hold hashes of terms, no words."""
        arrays = {
            "has_text": self.has_text,
            **sparse_arrays(self.words, "words"),
            **sparse_arrays(self.characters, "characters"),
        }
        for name in ("word_weights", "character_weights"):
            weights: TermWeights = getattr(self, name)
            arrays |= {
                f"{name}.terms": weights.terms,
                f"{name}.idf": weights.idf,
                f"{name}.unseen": np.array(weights.unseen),
            }
        if self.vectors is not None and self.whitening is not None:
            arrays |= {"vectors": self.vectors, "mean": self.whitening.mean, "whitening": self.whitening.matrix}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Read what ``to_arrays`` gave."""
        word_weights, character_weights = (
            TermWeights(arrays[f"{name}.terms"], arrays[f"{name}.idf"], float(arrays[f"{name}.unseen"]))
            for name in ("word_weights", "character_weights")
        )
        return cls(
            words=sparse_from(arrays, "words"),
            characters=sparse_from(arrays, "characters"),
            word_weights=word_weights,
            character_weights=character_weights,
            vectors=arrays.get("vectors"),
            whitening=Whitening(arrays["mean"], arrays["whitening"]) if "whitening" in arrays else None,
            has_text=arrays["has_text"],
        )

    def _parts(self) -> list[csr_matrix | FloatArray]:
        return [part for part in (self.words, self.characters, self.vectors) if part is not None]


def texts_and_titles(items: Items, codes: IntArray | None = None) -> tuple[list[str], list[str]]:
    """Texts and titles of items (None: of all), an item's whole text where it has no title."""
    chosen = slice(None) if codes is None else codes
    texts = [str(text) for text in items.texts[chosen]]
    if "title" not in items.frame:
        return texts, texts
    titles = items.frame["title"].to_numpy(dtype=object)[chosen]
    return texts, [str(title) if str(title).strip() else text for title, text in zip(titles, texts, strict=True)]


def has_text(texts: Iterable[str]) -> BoolArray:
    """Say which texts are more than blanks: bool, shape (n_texts,)."""
    return np.array([bool(str(text).strip()) for text in texts], dtype=np.bool_)


def text_vectors(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """Vectors of texts: float32, shape (n_texts, size); zero for a blank one, whatever the encoder makes of nothing."""
    return np.where(has_text(texts)[:, None], encoder.encode(list(texts)), np.float32(0))


def _tf_idf(texts: Sequence[str], analyzer: Analyzer) -> tuple[csr_matrix, TermWeights]:
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = _term_counts(texts, analyzer)
    transformer = TfidfTransformer(sublinear_tf=True).fit(counts)
    terms = np.unique(counts.indices).astype(np.int32)
    # as the transformer has it: of a term in no text
    weights = TermWeights(terms, transformer.idf_[terms].astype(np.float32), float(np.log(1 + len(texts)) + 1))
    return transformer.transform(counts).astype(np.float32), weights


def _term_counts(texts: Sequence[str], analyzer: Analyzer) -> csr_matrix:
    from sklearn.feature_extraction.text import HashingVectorizer

    # hashing: no vocabulary to keep, and texts of punctuation alone give empty rows instead of an error
    return HashingVectorizer(
        analyzer=analyzer,
        ngram_range=(1, 2) if analyzer == "word" else (2, 5),  # from 2: most Chinese words have two characters
        n_features=2**20,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    ).transform(texts)


def _only(vectors: csr_matrix, known: BoolArray) -> csr_matrix:
    """Empty the rows that are not known."""
    from scipy.sparse import csr_matrix

    lengths = np.diff(vectors.indptr)
    kept = np.repeat(known, lengths)
    indptr = np.concatenate([[0], np.cumsum(np.where(known, lengths, 0))])
    return csr_matrix((vectors.data[kept], vectors.indices[kept], indptr), shape=vectors.shape)


def _with_sparse_rows(matrix: csr_matrix, n_rows: int, codes: IntArray, rows: csr_matrix) -> csr_matrix:
    """Copy a matrix, lengthen it to n_rows rows, and put ``rows`` where ``codes`` say."""
    from scipy.sparse import csr_matrix, vstack

    order = np.arange(n_rows)
    order[codes] = matrix.shape[0] + np.arange(len(codes))
    return csr_matrix(csr_matrix(vstack([matrix, rows], format="csr"))[order])


def add_similarities(total: FloatArray, vectors: csr_matrix | FloatArray) -> None:
    """Add all inner products of the rows of ``vectors`` to ``total`` in place, block by block."""
    columns = vectors.T.tocsr() if not isinstance(vectors, np.ndarray) else vectors.T
    for start in range(0, total.shape[0], ROWS_A_BLOCK):
        stop = min(start + ROWS_A_BLOCK, total.shape[0])
        product = vectors[start:stop] @ columns
        total[start:stop] += product if isinstance(product, np.ndarray) else product.toarray()


ROWS_A_BLOCK = 512
