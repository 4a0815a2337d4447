"""Scores by vectors that the shop brings itself, of any modality: pictures, sounds, texts, whatever it has a model for.

The formula is ``similarity.py``'s, without searches: nothing here can turn words into such a vector.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import numpy as np

from llm_rerank.data.vectors import is_vector_name
from llm_rerank.models.changes import codes_to_read, with_rows
from llm_rerank.models.semantic.vector_scores import history_vectors, score_rows, similarity_table
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.storage import read_arrays, read_json, write_arrays, write_json
from llm_rerank.types import BoolArray, Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

SETTINGS = ("decay", "greatest_weight", "whiten")


class VectorScorer:
    """Similarity of a candidate's vector to those of the user's history, as ``SemanticScorer`` without a search.

    name: the column of items that the vectors come from, such as "image_vector", and the component's name.
    decay: 0 or more, a visit. greatest_weight: 0 or more. whiten: take out what all vectors of the shop have in common.
    NaN where the candidate has no vector, or where nothing in the history has one.
    """

    depends_on_list = False

    def __init__(self, name: str, *, decay: float = 0.3, greatest_weight: float = 0.0, whiten: bool = True) -> None:
        if not is_vector_name(name):
            raise DataError(f"name is {name!r}; it must be a column of vectors such as 'image_vector'")
        for setting, value in (("decay", decay), ("greatest_weight", greatest_weight)):
            if not value >= 0:
                raise DataError(f"{setting} is {value}; it must be 0 or more")
        self.name = name
        self.decay = decay
        self.greatest_weight = greatest_weight
        self.whiten = whiten
        self._whitening: Whitening | None = None
        self._vectors: FloatArray | None = None
        self._known: BoolArray = np.empty(0, dtype=np.bool_)

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Whiten the items' vectors; the events are not read, nothing is drawn at random.

        Raises DataError where no item has a vector.
        """
        vectors = items.vectors.get(self.name)
        if vectors is None or len(vectors) and not vectors.any():
            raise DataError(
                f"none of the {len(items)} items has a vector in {self.name!r}; give the items a column of that name, "
                "a list of numbers a cell"
            )
        self._whitening = Whitening.fit(vectors) if self.whiten else Whitening.identity(vectors.shape[1])
        self._keep(self._whitening.apply(vectors))
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, whose changed vectors are read anew; the whitening stays.

        Raises DataError where they are of another length.
        """
        vectors = self._fitted()
        codes = codes_to_read(len(vectors), items, changed)
        given = items.vectors.get(self.name)
        fresh = np.zeros((len(codes), vectors.shape[1]), dtype=np.float32) if given is None else given[codes]
        if fresh.shape[1] != vectors.shape[1]:
            raise DataError(
                f"{self.name} has vectors of {fresh.shape[1]:,} numbers, the fit read {vectors.shape[1]:,}; make them "
                "with the same model, or fit again"
            )
        assert self._whitening is not None
        grown = copy.copy(self)
        grown._keep(with_rows(vectors, len(items), codes, self._whitening.apply(fresh)))
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: no vector, no history, or unknown to the catalogue."""
        vectors = self._fitted()
        return score_rows(
            cases,
            cases.candidates.values,
            len(vectors),
            lambda block, rows: self._table(block, vectors[rows], self._known[rows]),
        )

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores of all items: float32, shape (n_cases, n_items). The caller cuts cases into blocks."""
        return self._table(cases, self._fitted(), self._known)

    def item_vectors(self, codes: IntArray) -> FloatArray:
        """Vectors of these items as the shop gave them: float32, shape (n_codes, size), unit length, zero: none."""
        vectors = self._fitted()[codes]
        assert self._whitening is not None
        return self._whitening.undo(vectors)

    def save(self, folder: Path) -> None:
        """Write settings, whitening and vectors."""
        write_arrays(folder / "vectors.safetensors", {"vectors": self._fitted()})
        assert self._whitening is not None
        arrays: dict[str, np.ndarray] = {"mean": self._whitening.mean, "matrix": self._whitening.matrix}
        write_arrays(folder / "whitening.safetensors", arrays)
        settings = {name: getattr(self, name) for name in SETTINGS}
        write_json(folder / "vectors.json", {"name": self.name, "settings": settings})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        stored = read_json(folder / "vectors.json")
        arrays, _ = read_arrays(folder / "whitening.safetensors")
        scorer = cls(stored["name"], **stored["settings"])
        scorer._whitening = Whitening(arrays["mean"], arrays["matrix"])
        scorer._keep(read_arrays(folder / "vectors.safetensors")[0]["vectors"])
        return scorer

    def _keep(self, vectors: FloatArray) -> None:
        self._vectors = vectors
        self._known = np.any(vectors != 0, axis=1)

    def _fitted(self) -> FloatArray:
        if self._vectors is None:
            raise NotFittedError("VectorScorer has no item vectors; call fit or load first")
        return self._vectors

    def _table(self, cases: Cases, candidates: FloatArray, known: BoolArray) -> FloatArray:
        """Scores of candidates for each case: float32, shape (n_cases, n_candidates)."""
        vectors = self._fitted()
        users, history = history_vectors(cases, vectors, self._known, self.decay)
        return similarity_table(users, history, vectors, candidates, known, self.greatest_weight)
