"""How alike items' texts are, as one dense matrix: the mean of several kernels of cosine similarities.

Word TF-IDF of the whole text sees what an item is about; character n-grams of the title see part numbers, inflections,
and languages without spaces; whitened encoder vectors see meaning. Memoised: scorers with other settings share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.types import BoolArray, DataError, Encoder, FloatArray, Items

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class TextKernel:
    """Mean of word, character and (with an encoder) whitened vector kernels over items' texts.

    The same object may be given to several scorers: the matrix of the last texts is kept (n_items² × 4 bytes).

    encoder: adds the kernel of the whole text's vectors.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self._key = b""
        self._matrix: FloatArray | None = None

    def matrix(self, items: Items) -> FloatArray:
        """Similarities: float32, shape (n_items, n_items), positive semi-definite, read-only.

        The diagonal is 1; less where a text has no word or no letter to compare, 0 where an item has no text.

        Raises DataError where no item has text.
        """
        texts = [str(text) for text in items.texts]
        if not any(text.strip() for text in texts):
            raise DataError(
                "no item has text; render the items first (Renderer.render_items), or use EASE, which reads none"
            )
        titles = _titles(items, texts)
        key = _fingerprint([texts, titles], "" if self.encoder is None else self.encoder.fingerprint)
        if self._matrix is None or key != self._key:
            self._matrix = None  # free the old one before the new one grows
            self._matrix = self._compute(texts, titles)
            self._matrix.flags.writeable = False
            self._key = key
        return self._matrix

    def _compute(self, texts: Sequence[str], titles: Sequence[str]) -> FloatArray:
        total = np.zeros((len(texts), len(texts)), dtype=np.float32)
        add_similarities(total, word_vectors(texts))
        # titles: of whole texts the n-grams cost eight times as much and rank no better (docs/lab-notebook.md)
        add_similarities(total, character_vectors(titles))
        n_kernels = 2
        if self.encoder is not None:
            vectors = self.encoder.encode(texts)
            add_similarities(total, Whitening.fit(vectors).apply(vectors))
            n_kernels = 3
        total /= np.float32(n_kernels)
        unknown = ~has_text(texts)
        total[unknown] = 0
        total[:, unknown] = 0
        return total


def _titles(items: Items, texts: Sequence[str]) -> list[str]:
    """Titles, or an item's whole text where it has none."""
    if "title" not in items.frame:
        return list(texts)
    return [str(title) if str(title).strip() else text for title, text in zip(items.frame["title"], texts, strict=True)]


def has_text(texts: Iterable[str]) -> BoolArray:
    """Say which texts are more than blanks: bool, shape (n_texts,)."""
    return np.array([bool(str(text).strip()) for text in texts], dtype=np.bool_)


def word_vectors(texts: Sequence[str]) -> csr_matrix:
    """TF-IDF of words and pairs of neighbouring words: float32 CSR, shape (n_texts, n_terms), rows of unit length."""
    return _tf_idf(texts, analyzer="word", ngram_range=(1, 2))


def character_vectors(texts: Sequence[str]) -> csr_matrix:
    """TF-IDF of 2 to 5 neighbouring characters within words: float32 CSR, rows of unit length.

    From 2, because most Chinese words have two characters.
    """
    return _tf_idf(texts, analyzer="char_wb", ngram_range=(2, 5))


def _tf_idf(texts: Sequence[str], *, analyzer: str, ngram_range: tuple[int, int]) -> csr_matrix:
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    # hashing: no vocabulary to keep, and texts of punctuation alone give empty rows instead of an error
    counts = HashingVectorizer(
        analyzer=analyzer, ngram_range=ngram_range, n_features=2**20, alternate_sign=False, norm=None, dtype=np.float32
    ).transform(texts)
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts).astype(np.float32)


def add_similarities(total: FloatArray, vectors: csr_matrix | FloatArray) -> None:
    """Add all inner products of the rows of ``vectors`` to ``total`` in place, block by block."""
    columns = vectors.T.tocsr() if not isinstance(vectors, np.ndarray) else vectors.T
    for start in range(0, total.shape[0], ROWS_A_BLOCK):
        stop = min(start + ROWS_A_BLOCK, total.shape[0])
        product = vectors[start:stop] @ columns
        total[start:stop] += product if isinstance(product, np.ndarray) else product.toarray()


ROWS_A_BLOCK = 512


def _fingerprint(parts: Sequence[Sequence[str]], encoder: str) -> bytes:
    digest = hashlib.blake2b(encoder.encode())
    for texts in parts:
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
