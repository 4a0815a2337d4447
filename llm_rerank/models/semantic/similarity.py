"""Scores by what the items say: the similarity of each candidate's text to the texts of the user's history.

The encoder and the index live next door; how an item becomes text is said in ``data/rendering.py``.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_matrix

from llm_rerank.models.changes import codes_to_read, texts_of, with_rows
from llm_rerank.models.scoring import require_texts, search_matrix
from llm_rerank.models.semantic.index import ItemIndex
from llm_rerank.models.semantic.text_features import text_vectors
from llm_rerank.models.semantic.vector_scores import history_vectors, score_rows, similarity_table
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.models.unit_length import unit_rows
from llm_rerank.storage import read_arrays, read_json, write_arrays, write_json
from llm_rerank.types import (
    BoolArray,
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

MOST_SEARCHES_KEPT = 4_096
"""Vectors of searches that are kept: 6 MB of 384 numbers each. Then they are found anew."""


class SemanticScorer:
    """Similarity of a candidate to the user's history, in text.

    With v the vectors (whitened, unit length), w_j = weight × exp(−decay × age in visits) for each history item j,
    q the searches newest first and u() scaling to unit length:

        user  = u( u(Σ_j w_j v_j) + query_weight × u(Σ_r exp(−decay × r) v(q_r)) )
        score = ( user · v_i + greatest_weight × max_j (w_j / max w) (v_j · v_i) ) / (1 + greatest_weight)

    Disliked items (negative weight) are subtracted in the sum and left out of the maximum, which is 0 where nothing is
    liked. A great decay makes it the similarity to the last item; a great ``greatest_weight``, to the nearest one.
    NaN where the candidate has no text or where the case has neither a history with text nor a search.

    encoder: None is the embedded default. decay: 0 or more, a visit. greatest_weight, query_weight: 0 or more.
    whiten: take out what all texts of the shop have in common (``whitening.py``).
    Defaults come from the validation split of Amazon Scientific, NDCG@10 with whitening and decay .3: .080, without
    whitening .070; greatest_weight 1 adds .0013 (standard error .0006) for five times the time, so it is off.
    """

    name = "semantic"
    depends_on_list = False

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        decay: float = 0.3,
        greatest_weight: float = 0.0,
        query_weight: float = 1.0,
        whiten: bool = True,
    ) -> None:
        for name, value in (("decay", decay), ("greatest_weight", greatest_weight), ("query_weight", query_weight)):
            if not value >= 0:
                raise DataError(f"{name} is {value}; it must be 0 or more")
        self.encoder = encoder
        self.decay = decay
        self.greatest_weight = greatest_weight
        self.query_weight = query_weight
        self.whiten = whiten
        self._reference: dict[str, Any] = {}
        self._whitening: Whitening | None = None
        self._vectors: FloatArray | None = None
        self._has_text: BoolArray = np.empty(0, dtype=np.bool_)
        self._index: ItemIndex | None = None
        self._searched: dict[bytes, FloatArray] = {}

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Encode the items' texts; the events are not read, nothing is drawn at random.

        Raises DataError where no item has a text.
        """
        from llm_rerank.models.semantic.encoder import SentenceEncoder, encoder_reference

        require_texts(items, "semantic scorer")
        self.encoder = SentenceEncoder() if self.encoder is None else self.encoder
        self._reference = encoder_reference(self.encoder)
        vectors = text_vectors(self.encoder, list(items.texts))
        self._whitening = Whitening.fit(vectors) if self.whiten else Whitening.identity(self.encoder.embedding_size)
        self._keep(self._whitening.apply(vectors))
        self._index = None
        self._searched = {}
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, whose changed texts are encoded anew; the whitening stays.

        The next ``retrieve`` builds the index anew.
        Raises StorageError where the encoder of the fit cannot be loaded.
        """
        vectors = self._fitted()
        codes = codes_to_read(len(vectors), items, changed)
        fresh = self._encode(texts_of(items, codes)) if len(codes) else vectors[:0]
        grown = copy.copy(self)
        grown._keep(with_rows(vectors, len(items), codes, fresh))
        grown._index = None
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: no text, no history, or unknown to the catalogue."""
        vectors = self._fitted()
        return score_rows(
            cases,
            cases.candidates.values,
            len(vectors),
            lambda block, rows: self._table(block, vectors[rows], self._has_text[rows]),
        )

    def score_texts(self, cases: Cases, texts: Sequence[str]) -> FloatArray:
        """Score as if these texts were the candidates': each is encoded and whitened as the items were at the fit.

        texts: one a candidate, laid out as ``cases.candidates.values``, whose codes are not read.
        Returns float32, shape (n_candidates,); NaN for a blank text and where the case says nothing.
        Raises StorageError where the encoder of the fit cannot be loaded.
        """
        self._fitted()
        vectors = self._encode(list(texts))
        has_text = np.any(vectors != 0, axis=1)
        return score_rows(
            cases,
            np.arange(len(vectors), dtype=np.int64),
            len(vectors),
            lambda block, rows: self._table(block, vectors[rows], has_text[rows]),
        )

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores of all items: float32, shape (n_cases, n_items). The caller cuts cases into blocks."""
        return self._table(cases, self._fitted(), self._has_text)

    def retrieve(self, cases: Cases, k: int) -> Ragged:
        """Find at most k items a case through the index, best first; none where the case says nothing.

        The index finds the items nearest to the user's vector (4k where ``greatest_weight`` counts); the whole score
        orders them. The first call builds it, above 200,000 items in minutes: for whom scores the whole catalogue
        anyway, ``scoring.retrieve`` finds the same without one.
        """
        if k < 1:
            raise DataError(f"k is {k}; it must be at least 1")
        users, _ = self._users(cases)
        asked = np.flatnonzero(np.any(users != 0, axis=1))
        index, codes = self._searchable()
        if not len(asked) or not len(codes):
            return Ragged.empty(len(cases))
        depth = min(4 * k if self.greatest_weight else k, len(codes))
        _, rows = index.search(users[asked], depth)
        found = rows >= 0
        lengths = np.zeros(len(cases), dtype=np.int64)
        lengths[asked] = found.sum(axis=1)
        near = Ragged.from_lengths(codes[rows[found]], lengths)
        scores = self.score(cases.with_candidates(near))
        order = np.lexsort((near.values, -scores, near.row_of_value))
        place = np.arange(len(order)) - np.repeat(near.offsets[:-1], near.lengths)
        return Ragged.from_lengths(near.values[order][place < k], np.minimum(near.lengths, k))

    def save(self, folder: Path) -> None:
        """Write settings, whitening, the vectors, and the encoder's name and fingerprint; not the index."""
        write_arrays(folder / "vectors.safetensors", {"vectors": self._fitted()})
        assert self._whitening is not None
        arrays: dict[str, np.ndarray] = {"mean": self._whitening.mean, "matrix": self._whitening.matrix}
        write_arrays(folder / "whitening.safetensors", arrays)
        settings = {name: getattr(self, name) for name in ("decay", "greatest_weight", "query_weight", "whiten")}
        write_json(folder / "semantic.json", {"settings": settings, "encoder": self._reference})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote. The encoder is not loaded before a case with a search comes."""
        stored = read_json(folder / "semantic.json")
        arrays, metadata = read_arrays(folder / "whitening.safetensors")
        scorer = cls(None, **stored["settings"])
        scorer._reference = stored["encoder"]
        scorer._whitening = Whitening(arrays["mean"], arrays["matrix"])
        if "codes" in arrays:  # saved by an earlier version: the index has the vectors of items with text
            vectors = np.zeros((metadata["n_items"], len(arrays["mean"])), dtype=np.float32)
            vectors[arrays["codes"]] = ItemIndex.load(folder / "index.faiss").vectors()
        else:
            vectors = read_arrays(folder / "vectors.safetensors")[0]["vectors"]
        scorer._keep(vectors)
        return scorer

    def item_vectors(self, codes: IntArray) -> FloatArray:
        """Vectors of these items' texts, as the encoder gave them: float32, shape (n_codes, size), unit length.

        Whitening is undone: it makes all but near copies look unrelated. Zero where an item has no text.
        """
        vectors = self._fitted()[codes]
        assert self._whitening is not None
        return self._whitening.undo(vectors)

    def _keep(self, vectors: FloatArray) -> None:
        self._vectors = vectors
        self._has_text = np.any(vectors != 0, axis=1)

    def _fitted(self) -> FloatArray:
        if self._vectors is None:
            raise NotFittedError("SemanticScorer has no item vectors; call fit or load first")
        return self._vectors

    def _searchable(self) -> tuple[ItemIndex, IntArray]:
        """Build the index on first use. Row r of it is item ``codes[r]``; items without text are not in it."""
        vectors = self._fitted()
        codes = np.flatnonzero(self._has_text).astype(np.int64)
        if self._index is None:
            self._index = ItemIndex(vectors.shape[1]).add(vectors[codes])
        return self._index, codes

    def _users(self, cases: Cases) -> tuple[FloatArray, csr_matrix]:
        """Vector of each case, float32 (n_cases, size), zero where it says nothing; and its decayed history."""
        users, history = history_vectors(cases, self._fitted(), self._has_text, self.decay)
        searches, weights = search_matrix(cases.queries, self.decay)
        if searches and self.query_weight:
            searched = np.diff(weights.indptr) > 0
            users[searched] += self.query_weight * unit_rows(weights[searched] @ self._search_vectors(searches))
            users = unit_rows(users)
        return users, history

    def _search_vectors(self, texts: list[str]) -> FloatArray:
        """Vectors of searches as ``_encode`` gives them; what was searched before is not encoded again.

        They are kept under digests, so that no user's words are.
        """
        kept, digests = self._searched, [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        found = {digest: kept[digest] for digest in digests if digest in kept}
        fresh = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in found}
        if fresh:
            found.update(zip(fresh, self._encode(list(fresh.values())), strict=True))
            if len(kept) + len(fresh) > MOST_SEARCHES_KEPT:
                self._searched = kept = {}  # a new one: another thread may be reading the old
            kept.update({digest: found[digest] for digest in fresh})
        return np.stack([found[digest] for digest in digests])

    def _encode(self, texts: list[str]) -> FloatArray:
        """Vectors of texts, whitened as the items': float32, shape (n_texts, size)."""
        from llm_rerank.models.semantic.encoder import check_same_encoder, load_encoder

        assert self._whitening is not None
        if self.encoder is None:
            self.encoder = load_encoder(self._reference)
        check_same_encoder(self.encoder, self._reference)
        return self._whitening.apply(text_vectors(self.encoder, texts))

    def _table(self, cases: Cases, candidates: FloatArray, has_text: BoolArray) -> FloatArray:
        """Scores of candidates for each case: float32, shape (n_cases, n_candidates).

        candidates: vectors, shape (n_candidates, size). has_text: shape (n_candidates,).
        """
        users, history = self._users(cases)
        return similarity_table(users, history, self._fitted(), candidates, has_text, self.greatest_weight)
