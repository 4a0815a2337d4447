"""How alike items' texts are, as one dense matrix: the mean of several kernels of cosine similarities.

Memoised: scorers with other settings share it. What it is made of is in ``semantic/text_features.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from llm_rerank.models.semantic.text_features import TextFeatures, texts_and_titles
from llm_rerank.types import DataError, Encoder, FloatArray, Items


class TextKernel:
    """Mean of word, character and (with an encoder) whitened vector kernels over items' texts.

    The same object may be given to several scorers: the matrix of the last texts is kept (n_items² × 4 bytes).

    encoder: adds the kernel of the whole text's vectors.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder
        self._key = b""
        self._matrix: FloatArray | None = None
        self._features: TextFeatures | None = None

    def matrix(self, items: Items) -> FloatArray:
        """Similarities: float32, shape (n_items, n_items), positive semi-definite, read-only.

        The diagonal is 1; less where a text has no word or no letter to compare, 0 where an item has no text.

        Raises DataError where no item has text.
        """
        texts, titles = texts_and_titles(items)
        if not any(text.strip() for text in texts):
            raise DataError(
                "no item has text (title, description, brand, categories, price, specs or a review): map the column "
                "that says what an item is, or give components that read none (EASE, docs/scorers.md); items of one's "
                "own making are rendered first (Renderer.render_items)"
            )
        key = _fingerprint([texts, titles], "" if self.encoder is None else self.encoder.fingerprint)
        if self._matrix is None or key != self._key:
            self._matrix = None  # free the old one before the new one grows
            self._features = TextFeatures.fit(texts, titles, self.encoder)
            self._matrix = self._features.matrix()
            self._matrix.flags.writeable = False
            self._key = key
        return self._matrix

    def features(self, items: Items) -> TextFeatures:
        """Return what the matrix of these items is made of; raises as ``matrix``."""
        self.matrix(items)
        assert self._features is not None
        return self._features


def _fingerprint(parts: Sequence[Sequence[str]], encoder: str) -> bytes:
    digest = hashlib.blake2b(encoder.encode())
    for texts in parts:
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
