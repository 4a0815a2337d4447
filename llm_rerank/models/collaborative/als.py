"""Implicit alternating least squares (Hu, Koren, Volinsky 2008) with a regularisation that follows frequency.

The solver is that of ``implicit``; what is added is the scaling, the order of the half-steps and the fold-in.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_matrix

from llm_rerank.models.changes import codes_to_read, longer
from llm_rerank.models.scoring import history_matrix, interaction_matrix, score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

_FILE = "als.safetensors"
_CLASS_WIDTH = 0.1
"""Frequencies within about 10 % share one regularisation, so that half-steps number some dozens, not thousands."""

_INITIAL_SCALE = 0.1

FEW_CASES = 64
"""Up to so many are folded in by one thread: a request's worth is done before others have started."""


class ALS:
    """Score of item i = u·v_i, from the weighted least squares of Hu et al. over observed and unobserved cells.

    Σ_observed c·(1 − u·v)² + Σ_unobserved (u·v)² + λ (Σ_u s_u ‖u‖² + Σ_i s_i ‖v‖²) is made small, with
    c = ``confidence`` × event weight and s = (frequency / mean frequency) ** ``frequency_exponent``, the frequency
    being a user's number of items or an item's number of users. ``implicit`` has one λ for all rows (exponent 0);
    Rendle et al. (2022, arXiv:2110.14037) scale it. Dividing by the mean keeps λ comparable across exponents.

    ``implicit``'s half-step solves each row by itself, so rows of one frequency (to within 10 %) form a block that is
    solved with its own λ·s, without a Python loop over rows. As ``implicit`` has it, a half-step of the fit is three
    steps of conjugate gradients from the vectors of before, no full solve; the next epochs go on from there.
    Rendle et al. scale by (observed + weight of all unobserved cells) ** exponent; in ``implicit``'s units, where an
    unobserved cell weighs 1, the second term drowns the first and scales nothing, so the observed cells alone are
    counted (as in ALS-WR, Zhou et al. 2008).

    No user vector is kept: a history is folded in by the exact least-squares half-step for one more user, its events
    faded by ``decay`` a visit. An event faded to c < 1 weighs less than an unobserved cell does, and in the limit
    nothing.

    embedding_size: length of the vectors. confidence: weight of an observed event; an unobserved one has 1.
    regularization: λ at the mean frequency. frequency_exponent: 0 as ``implicit`` has it, 1 full scaling.
    epochs: pairs of half-steps. decay: read when scoring. n_threads: 0 for all cores; the result does not depend on it.
    Scores: NaN for items without any event in the fit and for histories without a known item.
    Dislikes (weight ≤ 0) are left out. Defaults: tuned on the validation split of Amazon Scientific.
    """

    name = "als"
    depends_on_list = False

    def __init__(
        self,
        *,
        embedding_size: int = 128,
        confidence: float = 200.0,
        regularization: float = 300.0,
        frequency_exponent: float = 0.5,
        epochs: int = 10,
        decay: float = 0.45,
        n_threads: int = 0,
    ) -> None:
        for name, value in (("embedding_size", embedding_size), ("epochs", epochs)):
            if value < 1:
                raise DataError(f"{name} is {value}; it must be a whole number of at least 1")
        for name, number in (("confidence", confidence), ("regularization", regularization)):
            if not number > 0:
                raise DataError(f"{name} is {number}; it must be above 0")
        if not decay >= 0:
            raise DataError(f"decay is {decay}; it must be 0 or more, for example 0.45 a visit")
        self.embedding_size = embedding_size
        self.confidence = confidence
        self.regularization = regularization
        self.frequency_exponent = frequency_exponent
        self.epochs = epochs
        self.decay = decay
        self.n_threads = n_threads
        self._item_factors: FloatArray | None = None
        self._mean_frequency = 1.0
        self._folding: tuple[FloatArray, IntArray, Any] | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Alternate between users and items, ``epochs`` times, from small random vectors.

        Raises DataError where no event has a positive weight.
        """
        liked = interaction_matrix(past)
        users = np.flatnonzero(np.diff(liked.indptr))
        columns = np.flatnonzero(np.bincount(liked.indices, minlength=past.n_items))
        if not len(users):
            raise DataError("als found no event of positive weight to learn from; check event, weight and min_rating")
        liked = liked[users][:, columns] * np.float32(self.confidence)
        self._mean_frequency = liked.nnz / len(users)

        # rows of one frequency side by side: implicit's solver then works in place on a slice of the factors
        by_frequency_of_user = np.argsort(np.diff(liked.indptr), kind="stable")
        by_frequency_of_item = np.argsort(np.bincount(liked.indices), kind="stable")
        user_rows = liked[by_frequency_of_user][:, by_frequency_of_item].tocsr()
        item_rows = user_rows.T.tocsr()

        rng = np.random.default_rng(seed)
        scale = np.float32(_INITIAL_SCALE / np.sqrt(self.embedding_size))
        user_factors, item_factors = (
            rng.standard_normal((n_rows, self.embedding_size), dtype=np.float32) * scale for n_rows in user_rows.shape
        )
        with _one_blas_thread():
            solver = self._model(self.regularization).solver
            for _ in range(self.epochs):
                self._half_step(solver, user_rows, user_factors, item_factors)
                self._half_step(solver, item_rows, item_factors, user_factors)
        # NaN for what was never seen: it then runs through the product of factors into the scores by itself
        self._item_factors = np.full((past.n_items, self.embedding_size), np.nan, dtype=np.float32)
        self._item_factors[columns[by_frequency_of_item]] = item_factors
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; new items have no factors before a fit, so their scores are NaN."""
        factors = self._fitted()
        codes_to_read(len(factors), items, changed)
        grown = copy.copy(self)
        grown._item_factors = longer(factors, len(items), np.nan)
        return grown

    def fold_in(self, cases: Cases) -> FloatArray:
        """Solve for the user vector of each case: float32, shape (n_cases, embedding_size); NaN without known items."""
        column_of, model = self._ready_to_fold()
        history = history_matrix(cases, len(column_of), decay=self.decay)
        known = column_of[history.indices] >= 0
        indptr = np.concatenate([[0], np.cumsum(known)])[history.indptr]
        columns, weights = column_of[history.indices[known]], history.data[known] * np.float32(self.confidence)
        rows = csr_matrix((weights, columns, indptr), shape=(len(cases), len(model.item_factors)))
        if len(cases) <= FEW_CASES:
            model.num_threads = 1
        vectors = np.full((len(cases), self.embedding_size), np.nan, dtype=np.float32)
        classes = frequency_classes(np.diff(rows.indptr))
        with _one_blas_thread():
            for frequency in np.unique(classes[classes > 0]):
                members = np.flatnonzero(classes == frequency)
                model.regularization = self._scaled(frequency, self._mean_frequency)
                vectors[members] = model.recalculate_user(members, rows[members])
        return vectors

    def _ready_to_fold(self) -> tuple[IntArray, Any]:
        """Column of each item in the solver, -1 without any event in the fit; and a solver of its own for the caller.

        What does not depend on the user, above all the product of the factors with themselves, is made once.
        """
        factors = self._fitted()
        if self._folding is None or self._folding[0] is not factors:
            known = np.flatnonzero(~np.isnan(factors[:, 0]))
            column_of = np.full(len(factors), -1, dtype=np.int64)
            column_of[known] = np.arange(len(known))
            model = self._model(self.regularization)
            model.item_factors = np.ascontiguousarray(factors[known])
            with _one_blas_thread():
                model.YtY  # noqa: B018 -- implicit keeps it
            self._folding = factors, column_of, model
        _, column_of, model = self._folding
        return column_of, copy.copy(model)  # each caller sets a regularization: two threads must not share one

    def item_vectors(self, codes: IntArray) -> FloatArray:
        """Factors of these items: float32, shape (n_codes, embedding_size); NaN without any event in the fit."""
        return self._fitted()[codes]

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        return self.fold_in(cases) @ self._fitted().T

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write the item factors and the settings: one file of n_items × embedding_size × 4 bytes."""
        settings = {
            "embedding_size": self.embedding_size,
            "confidence": self.confidence,
            "regularization": self.regularization,
            "frequency_exponent": self.frequency_exponent,
            "epochs": self.epochs,
            "decay": self.decay,
            "n_threads": self.n_threads,
        }
        metadata = {"settings": settings, "mean_frequency": self._mean_frequency}
        write_arrays(folder / _FILE, {"item_factors": self._fitted()}, metadata)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, metadata = read_arrays(folder / _FILE)
        scorer = cls(**metadata["settings"])
        scorer._item_factors = arrays["item_factors"]
        scorer._mean_frequency = metadata["mean_frequency"]
        return scorer

    def _half_step(self, solver: Any, rows: csr_matrix, solved: FloatArray, fixed: FloatArray) -> None:
        """Solve ``solved`` (float32, shape (n_rows, embedding_size), rows by rising frequency) in place."""
        counts = np.diff(rows.indptr)
        classes = frequency_classes(counts)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1, [len(classes)]])
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            regularization = self._scaled(classes[start], counts.mean())
            solver(rows[start:stop], solved[start:stop], fixed, regularization, num_threads=self.n_threads)

    def _scaled(self, frequency: float, mean_frequency: float) -> float:
        return float(self.regularization * (frequency / mean_frequency) ** self.frequency_exponent)

    def _model(self, regularization: float) -> Any:
        from implicit.cpu.als import AlternatingLeastSquares

        with _one_blas_thread():  # implicit warns where it finds more
            return AlternatingLeastSquares(
                factors=self.embedding_size, regularization=regularization, alpha=1.0, num_threads=self.n_threads
            )

    def _fitted(self) -> FloatArray:
        if self._item_factors is None:
            raise NotFittedError("als has no factors yet; call fit or load first")
        return self._item_factors


def frequency_classes(counts: IntArray) -> np.ndarray:
    """Round counts on a logarithmic scale, so that few distinct values are left: float64, same shape.

    1 to 10 stay apart; every value is within 5.2 % of its count; 0 stays 0; order is kept.
    """
    counts = np.asarray(counts)
    steps = np.round(np.log(np.maximum(counts, 1)) / _CLASS_WIDTH) * _CLASS_WIDTH
    return np.where(counts > 0, np.exp(steps), 0.0)


@cache
def _blas() -> Any:
    """Find the BLAS libraries of this process once: the search takes milliseconds."""
    import implicit.cpu.als  # noqa: F401 -- what it brings must be found, too
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def _one_blas_thread() -> Any:
    return _blas().limit(limits=1, user_api="blas")  # implicit has threads of its own; BLAS threads in them only wait
