"""Rankers of a catalogue by a search phrase alone: word counts, characters, BM25, and a sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import Trial
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.models.semantic.text_features import TextFeatures, has_text, texts_and_titles
from llm_rerank.types import Cases, Encoder, FloatArray, IntArray, Ragged

LONG_TOKENS = 1024  # the encoder reads 128; an index of words has no such bound
PASSAGE_WORDS = 40


@dataclass(frozen=True)
class BM25:
    """Okapi BM25 (Robertson and Zaragoza, 2009). weights: float64 CSR, shape (n_items, n_terms)."""

    vectorizer: CountVectorizer
    weights: csr_matrix

    @classmethod
    def fit(cls, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> BM25:
        """Weigh each term of each text: idf · tf (k1 + 1) / (tf + k1 (1 − b + b length / mean length))."""
        vectorizer = CountVectorizer(dtype=np.float64)
        counts = csr_matrix(vectorizer.fit_transform(texts))
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        with_term = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - with_term + 0.5) / (with_term + 0.5))
        norms = k1 * (1 - b + b * lengths / lengths.mean())
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + norms[rows])
        return cls(vectorizer, counts)

    def score(self, phrases: Sequence[str]) -> FloatArray:
        """Scores: float32, shape (n_phrases, n_items)."""
        return (self.vectorizer.transform(phrases) @ self.weights.T).toarray().astype(np.float32)


class Catalogue:
    """The items with a text, as of the cut, in a drawn order, so that equal scores do not fall in the file's.

    codes: int64, shape (n,), of the trial's items.
    """

    def __init__(self, trial: Trial, encoder: Encoder, seed: int) -> None:
        texts, titles = texts_and_titles(trial.items)
        long = Renderer().render_items(trial.items, trial.past, max_tokens=LONG_TOKENS).texts
        self.codes: IntArray = np.random.default_rng(seed).permutation(np.flatnonzero(has_text(texts)))
        fields = {"text": texts, "title": titles, "long text": list(long)}
        self.fields = {
            name: [field[code] for code in self.codes]
            for name, field in fields.items()
            if name == "text" or field != texts
        }
        self._features = {name: TextFeatures.fit(field, field, None) for name, field in self.fields.items()}
        self._bm25 = {name: BM25.fit(field) for name, field in self.fields.items()}
        self._semantic = {
            f"{kind} of {name}": SemanticScorer(encoder, whiten=kind == "whitened").fit(
                trial.past, trial.items.with_texts(_in_place(field, self.codes, len(trial.items))), seed=seed
            )
            for name, field in self.fields.items()
            if name != "long text"
            for kind in ("plain", "whitened")
        }
        longest = self.fields.get("long text", self.fields["text"])
        self._passages = Passages.of(longest, encoder)

    def word_scores(self, phrases: Sequence[str]) -> dict[str, FloatArray]:
        """Score every item by each word method: float32, shape (n_phrases, n), by name."""
        scores = {}
        for name, features in self._features.items():
            words = features.word_weights.vectors(phrases, "word") @ features.words.T
            characters = features.character_weights.vectors(phrases, "char_wb") @ features.characters.T
            scores[f"words of {name}"] = words.toarray()
            scores[f"characters of {name}"] = characters.toarray()
            scores[f"BM25 of {name}"] = self._bm25[name].score(phrases)
        # what the library's own kernel averages where there is no encoder
        of_title = scores.get("characters of title", scores["characters of text"])
        scores["words of text and characters of title"] = (scores["words of text"] + of_title) / 2
        return scores

    def encoder_scores(self, phrases: Sequence[str]) -> dict[str, FloatArray]:
        """Score every item by the encoder, as the library answers a search, and by passages: as ``word_scores``."""
        cases = searching(phrases)
        scores = {name: scorer.score_catalogue(cases)[:, self.codes] for name, scorer in self._semantic.items()}
        return {**scores, "nearest passage": self._passages.score(phrases)}


def _in_place(texts: Sequence[str], codes: IntArray, n_items: int) -> list[str]:
    placed = [""] * n_items
    for code, text in zip(codes, texts, strict=True):
        placed[code] = text
    return placed


def searching(phrases: Sequence[str]) -> Cases:
    """Build a case for each phrase: a search, no history, no candidates."""
    n = len(phrases)
    nothing = np.empty(0, dtype=np.int64)
    return Cases(
        user_rows=np.full(n, -1, dtype=np.int64),
        times=np.zeros(n, dtype=np.int64),
        history=Ragged.empty(n),
        history_weights=np.empty(0, dtype=np.float32),
        history_times=nothing,
        queries=list(phrases),
        candidates=Ragged.empty(n),
        targets=Ragged.empty(n),
    )


@dataclass(frozen=True)
class Passages:
    """Long texts as passages, each read by itself; an item scores as its nearest one. Not what the library does.

    vectors: float32, shape (n_passages, size), unit length. starts: int64, shape (n_items,), first passage of each.
    """

    encoder: Encoder
    vectors: FloatArray
    starts: IntArray

    @classmethod
    def of(cls, texts: Sequence[str], encoder: Encoder) -> Passages:
        """Cut each text, none of them blank, every ``PASSAGE_WORDS`` words and encode the passages."""
        cut = [passages(text) for text in texts]
        starts = np.cumsum([0, *map(len, cut)])[:-1]
        return cls(encoder, encoder.encode([passage for parts in cut for passage in parts]), starts)

    def score(self, phrases: Sequence[str]) -> FloatArray:
        """Scores: float32, shape (n_phrases, n_items)."""
        return np.maximum.reduceat(self.encoder.encode(list(phrases)) @ self.vectors.T, self.starts, axis=1)


def passages(text: str) -> list[str]:
    """Cut a text every ``PASSAGE_WORDS`` words."""
    words = text.split()
    return [" ".join(words[start : start + PASSAGE_WORDS]) for start in range(0, len(words), PASSAGE_WORDS)]
