"""Scores by the words that items share: what a search or a history names, found in the candidates' texts.

No language model: counts of words and of letters (``text_features.py``). A search reaches an item by a word of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from scipy.sparse import csr_matrix, hstack

from llm_rerank.models.changes import codes_to_read
from llm_rerank.models.scoring import history_matrix, score_candidates, search_matrix
from llm_rerank.models.semantic.text_features import TextFeatures, texts_and_titles
from llm_rerank.models.unit_length import unit_sparse_rows
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

_FILE = "lexical.safetensors"

FREQUENT_TERMS = 2_048
"""Terms multiplied as dense columns: each is in so many texts that sparse products of it take four times as long."""


class LexicalScorer:
    """Similarity of a candidate to the user's history and searches, in words.

    With v an item's TF-IDF vector (words of its text; letters of its title, ``letter_weight`` to one; unit length),
    w_j = weight × exp(−decay × age in visits) for each history item j, q the searches newest first, read as both text
    and title, and u() scaling to unit length:

        user  = u( u(Σ_j w_j v_j) + query_weight × u(Σ_r exp(−decay × r) v(q_r)) )
        score = user · v_i

    as ``SemanticScorer`` has it of an encoder's vectors; disliked items (negative weight) are subtracted. How rare a
    term is stays as it was at the fit.
    NaN where the candidate has no text or where the case has neither a history with text nor a search.

    decay: 0 or more, a visit; read when scoring, so it may be changed after the fit. query_weight, letter_weight: 0 or
    more.
    """

    name = "lexical"
    depends_on_list = False

    def __init__(self, *, decay: float = 0.2, query_weight: float = 1.0, letter_weight: float = 0.25) -> None:
        for name, value in (("decay", decay), ("query_weight", query_weight), ("letter_weight", letter_weight)):
            if not value >= 0:
                raise DataError(f"{name} is {value}; it must be 0 or more")
        self.decay = decay
        self.query_weight = query_weight
        self.letter_weight = letter_weight
        self._features: TextFeatures | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count the terms of the items' texts; the events are not read, nothing is drawn at random."""
        self._keep(TextFeatures.fit(*texts_and_titles(items), None))
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, whose changed texts are read anew; rarity stays that of the fit."""
        features = self._fitted()
        codes = codes_to_read(len(features), items, changed)
        grown = copy.copy(self)
        if len(codes):
            grown._keep(features.with_texts(codes, *texts_and_titles(items, codes), None))
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: no text, no history, or unknown to the catalogue."""
        return score_candidates(self, cases)

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        features = self._fitted()
        users = self._users(cases)
        table: FloatArray = np.ascontiguousarray((self._frequent @ users[:, self._frequent_terms].toarray().T).T)
        table += (users @ self._rare).toarray()
        table[np.diff(users.indptr) == 0] = np.nan
        table[:, ~features.has_text] = np.nan
        return table

    def save(self, folder: Path) -> None:
        """Write settings and the hashed terms of the texts; no words."""
        settings = {name: getattr(self, name) for name in ("decay", "query_weight", "letter_weight")}
        write_arrays(folder / _FILE, self._fitted().to_arrays(), settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings)
        scorer._keep(TextFeatures.from_arrays(arrays))
        return scorer

    def _keep(self, features: TextFeatures) -> None:
        """Lay the items' vectors out for products: the frequent terms an item a row, the rare ones a term a row."""
        self._features = features
        self._vectors = self._joined(features.words, features.characters)
        counts = np.bincount(self._vectors.indices, minlength=self._vectors.shape[1])
        self._frequent_terms = np.sort(np.argsort(-counts, kind="stable")[:FREQUENT_TERMS])
        self._frequent = self._vectors[:, self._frequent_terms]
        rare = self._vectors.copy()
        rare.data[np.isin(rare.indices, self._frequent_terms)] = 0
        rare.eliminate_zeros()
        self._rare = csr_matrix(rare.T)

    def _fitted(self) -> TextFeatures:
        if self._features is None:
            raise NotFittedError("LexicalScorer has read no texts yet; call fit or load first")
        return self._features

    def _users(self, cases: Cases) -> csr_matrix:
        """Vector of each case: float32 CSR, shape (n_cases, n_terms), unit length; empty where it says nothing."""
        has_text = self._fitted().has_text
        history = history_matrix(cases, len(has_text), decay=self.decay, positive_only=False, readable=has_text)
        users = unit_sparse_rows(history @ self._vectors)
        searches, weights = search_matrix(cases.queries, self.decay)
        if searches and self.query_weight:
            users = unit_sparse_rows(
                users + self.query_weight * unit_sparse_rows(weights @ self._search_vectors(searches))
            )
        return users

    def _search_vectors(self, texts: Sequence[str]) -> csr_matrix:
        """Vectors of searches by the measure of the fit: float32 CSR, shape (n_texts, n_terms), of unit length."""
        features = self._fitted()
        words = features.word_weights.vectors(texts, "word")
        return self._joined(words, features.character_weights.vectors(texts, "char_wb"))

    def _joined(self, words: csr_matrix, characters: csr_matrix) -> csr_matrix:
        """Put both kinds of terms side by side, so that an inner product is the weighted mean of both similarities."""
        return unit_sparse_rows(hstack([words, np.sqrt(self.letter_weight) * characters], format="csr"))
