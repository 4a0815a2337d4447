"""Matrix factorisation by gradient descent, R ≈ UᵀV, with new users folded in from a history or from attributes.

The arithmetic (losses, fold-in, ridge regression) is pure functions; alternating least squares is in ``als.py``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from scipy.sparse import csr_matrix, diags_array

from llm_rerank.models.changes import codes_to_read, longer
from llm_rerank.models.collaborative.attributes import AttributeMap, check_features, known_rows
from llm_rerank.models.collaborative.descent import (
    Cells,
    DescentSettings,
    descend,
    initial_vectors,
    liked_cells,
    rated_cells,
)
from llm_rerank.models.collaborative.fold_in import logistic_fold_in, ridge_fold_in
from llm_rerank.models.scoring import history_matrix, score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import (
    BoolArray,
    Cases,
    DataError,
    FloatArray,
    IntArray,
    Interactions,
    Items,
    NotFittedError,
    Ragged,
)

Form = Literal["implicit", "explicit"]

_FILE = "sgd_mf.safetensors"
_DEFAULTS: dict[Form, dict[str, Any]] = {
    # the article's rate and iterations
    "explicit": {"embedding_size": 32, "learning_rate": 0.01, "epochs": 100, "regularization": 0.02},
    # tuned on the validation split of Amazon Scientific
    "implicit": {"embedding_size": 256, "learning_rate": 0.1, "epochs": 30, "regularization": 0.1},
}
_NEGATIVES_IN_FOLD_IN = 512

# A bias is a factor whose partner is fixed at 1: the last two columns of each vector.
_ONE_OF_USER = -1  # meets the item's bias
_ONE_OF_ITEM = -2  # meets the user's bias
_SETTINGS = (
    "form",
    "embedding_size",
    "learning_rate",
    "epochs",
    "regularization",
    "fold_in_regularization",
    "negative_weight",
    "decay",
    "biases",
)


@dataclass(frozen=True)
class ItemFactors:
    """What scoring needs of a fit.

    vectors: float32, shape (n_items, embedding_size + 2), NaN for items outside the fit, so that their scores are too.
    sample: int64, codes that a folded-in history is set against. negative_weight: ω. mean_rating: μ.
    liked_rating, disliked_rating: what a history event without a rating stands for.
    """

    vectors: FloatArray
    sample: IntArray
    negative_weight: float
    mean_rating: float
    liked_rating: float
    disliked_rating: float

    @property
    def known(self) -> BoolArray:
        """Items of the fit: bool, shape (n_items,)."""
        return ~np.isnan(self.vectors[:, 0])


class SGDMatrixFactorization:
    """Score of item i = μ + b_u + b_i + u·v_i, learned by stochastic gradient descent on U and V.

    The article's chapter 4, corrected. Its factors (10 × 100 and 5 × 1,000) do not multiply: U and V have equal rank
    here. Its updates are written elementwise over all of R: here they run over cells that were really observed.

    form "explicit": ½(r − score)² over the observed ratings only, L2 on every touched vector; learning rate .01, 100
    epochs as the article has it. form "implicit": what was not chosen is unknown, not 0, and all that was observed is
    1: squared error over observed cells alone is 0 at score ≡ 1, a constant that ranks nothing. So each event is set
    against items drawn at random: log(1 + e^−s_ui) + ω mean_j log(1 + e^s_uj) with ω = ``negative_weight``, whose
    minimum without L2 is the log of how much likelier u's next event is i than chance, less log ω.

    No user vector is kept. A history is folded in by minimising the same loss over one user's vector with the items
    fixed: in closed form (explicit), by accelerated gradient steps for all cases at once against a fixed draw of
    items (implicit), its events faded by ``decay`` a visit. With ``user_features`` a ridge regression from attributes
    to fitted user vectors gives the vector that the penalty pulls towards, and the whole vector of a user without
    history (regression-based latent factors, Agarwal & Chen 2009).

    embedding_size: rank. learning_rate, epochs, regularization: None takes the form's default, as with embedding_size;
    regularization is λ in ½λ‖u‖² a cell. fold_in_regularization: the same in the implicit fold-in.
    negative_weight: None: by ``default_negative_weight``. decay: read when scoring.
    biases: b_u, b_i, and in the explicit form μ. user_features: float32, shape (n_rows of the users frame,
    n_features), all finite; saved with the model, and may be replaced by a longer one later.
    Explicit histories: ``Cases`` has weights, not ratings, so a liked event counts as the mean rating of liked events
    in the fit, a disliked one as that of disliked; ``fold_in_ratings`` takes real ratings.
    Scores: NaN for items outside the fit and for users with neither a known item nor attributes.

    loss_curve: float32, shape (epochs,), mean squared error or mean logistic loss a cell during each epoch.
    """

    name = "sgd_mf"
    depends_on_list = False

    def __init__(
        self,
        *,
        form: Form = "implicit",
        embedding_size: int | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        regularization: float | None = None,
        fold_in_regularization: float = 0.025,
        negative_weight: float | None = None,
        decay: float = 0.6,
        biases: bool = True,
        user_features: FloatArray | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise DataError(f"form is {form!r}; it must be one of {', '.join(get_args(Form))}")
        self.form: Form = form
        defaults = _DEFAULTS[form]
        self.embedding_size: int = defaults["embedding_size"] if embedding_size is None else embedding_size
        self.learning_rate: float = defaults["learning_rate"] if learning_rate is None else learning_rate
        self.epochs: int = defaults["epochs"] if epochs is None else epochs
        self.regularization: float = defaults["regularization"] if regularization is None else regularization
        self.fold_in_regularization = fold_in_regularization
        self.negative_weight = negative_weight
        self.decay = decay
        self.biases = biases
        self.user_features = None if user_features is None else check_features(user_features)
        for name in ("embedding_size", "epochs"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be a whole number of at least 1")
        for name in ("learning_rate", "regularization", "fold_in_regularization", "negative_weight"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not decay >= 0:
            raise DataError(f"decay is {decay}; it must be 0 or more, for example 0.6 a visit")
        self.loss_curve: FloatArray = np.empty(0, dtype=np.float32)
        self._factors: ItemFactors | None = None
        self._attributes: AttributeMap | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Descend for ``epochs`` passes over the observed cells.

        Raises DataError where there is nothing to learn from (no rating; no event of positive weight), and where the
        descent diverged.
        """
        cells = rated_cells(past) if self.form == "explicit" else liked_cells(past)
        users, user_of_cell = np.unique(cells.users, return_inverse=True)
        codes, item_of_cell = np.unique(cells.items, return_inverse=True)
        mean_rating = float(cells.targets.mean()) if self.biases and self.form == "explicit" else 0.0

        rng = np.random.default_rng(seed)
        user_vectors = initial_vectors(rng, len(users), self.embedding_size, fixed_column=_ONE_OF_USER)
        item_vectors = initial_vectors(rng, len(codes), self.embedding_size, fixed_column=_ONE_OF_ITEM)
        negative_weight = self.negative_weight
        if negative_weight is None:
            negative_weight = default_negative_weight(len(codes), len(cells.items) / len(users))
        inner = Cells(user_of_cell, item_of_cell, cells.targets - np.float32(mean_rating), cells.weights)
        self.loss_curve = descend(
            inner,
            user_vectors,
            item_vectors,
            free_user=self._free_columns(fixed_column=_ONE_OF_USER),
            free_item=self._free_columns(fixed_column=_ONE_OF_ITEM),
            settings=DescentSettings(
                self.learning_rate,
                self.epochs,
                self.regularization,
                negative_weight if self.form == "implicit" else None,
            ),
            rng=rng,
        )

        vectors = np.full((past.n_items, item_vectors.shape[1]), np.nan, dtype=np.float32)
        vectors[codes] = item_vectors
        sample = rng.choice(codes, min(_NEGATIVES_IN_FOLD_IN, len(codes)), replace=False)
        self._factors = ItemFactors(
            vectors, np.sort(sample), negative_weight, mean_rating, *_ratings_of_signs(past, mean_rating)
        )
        self._attributes = None
        if self.user_features is not None:
            rows = past.user_rows[users]
            self._attributes = AttributeMap.fit(self.user_features, rows, user_vectors[:, :-1])
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; new items have no vectors before a fit, so their scores are NaN."""
        factors = self._fitted()
        codes_to_read(len(factors.vectors), items, changed)
        grown = copy.copy(self)
        grown._factors = replace(factors, vectors=longer(factors.vectors, len(items), np.nan))
        return grown

    def fold_in(self, cases: Cases) -> FloatArray:
        """Solve for each case's user vector: float32, shape (n_cases, embedding_size + 2); NaN where nothing is known.

        The last two columns belong to the biases: the user's own, and a 1 that meets the item's.
        """
        factors = self._fitted()
        if self.form == "explicit":
            liked = cases.history_weights > 0
            ratings = np.where(liked, factors.liked_rating, factors.disliked_rating).astype(np.float32)
            return self.fold_in_ratings(cases.history, ratings, user_rows=cases.user_rows)
        histories = history_matrix(cases, len(factors.vectors), decay=self.decay)
        histories = csr_matrix(histories @ diags_array(factors.known.astype(np.float32)))
        histories.eliminate_zeros()
        prior, has_attributes = self._prior(cases.user_rows)
        vectors = prior.copy()
        filled = np.diff(histories.indptr) > 0
        if filled.any():
            vectors[filled] = logistic_fold_in(
                histories[filled],
                np.nan_to_num(factors.vectors),
                factors.vectors[factors.sample],
                prior[filled],
                free=self._free_columns(fixed_column=_ONE_OF_USER),
                negative_weight=factors.negative_weight,
                regularization=self.fold_in_regularization,
            )
        vectors[~filled & ~has_attributes] = np.nan
        return vectors

    def fold_in_ratings(self, history: Ragged, ratings: FloatArray, *, user_rows: IntArray | None = None) -> FloatArray:
        """User vectors from real ratings (float32, shape (n_history,), aligned with ``history``), in closed form.

        user_rows: rows of ``user_features``, -1: none. Returns as ``fold_in``.

        Raises DataError in the implicit form.
        """
        factors = self._fitted()
        if self.form != "explicit":
            raise DataError("fold_in_ratings needs form='explicit'; this model was built with form='implicit'")
        prior, has_attributes = self._prior(np.full(len(history), -1) if user_rows is None else user_rows)
        inside = (history.values >= 0) & (history.values < len(factors.vectors))
        vectors_of_events = factors.vectors[np.where(inside, history.values, 0)]
        inside &= ~np.isnan(vectors_of_events[:, 0])
        rows = history.row_of_value[inside]
        known = vectors_of_events[inside]
        # what the prior leaves of each rating is explained by a step away from it, ridge on the step
        rest = ratings[inside] - np.float32(factors.mean_rating) - np.einsum("ij,ij->i", prior[rows], known)
        lengths = np.bincount(rows, minlength=len(history)).astype(np.int64)
        free = self._free_columns(fixed_column=_ONE_OF_USER)
        vectors = prior + ridge_fold_in(known * free, rest, lengths, self.regularization)
        vectors[(lengths == 0) & ~has_attributes] = np.nan
        return vectors

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items). Ratings in the explicit form, log-odds in the implicit."""
        return self.predict(self.fold_in(cases))

    def predict(self, user_vectors: FloatArray) -> FloatArray:
        """Scores of the catalogue for vectors of ``fold_in`` or ``fold_in_ratings``: float32, (n_users, n_items)."""
        factors = self._fitted()
        return user_vectors @ factors.vectors.T + np.float32(factors.mean_rating)

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write item vectors, the regression on attributes, ``user_features`` and the settings to one file."""
        factors = self._fitted()
        arrays: dict[str, np.ndarray] = {
            "vectors": factors.vectors,
            "sample": factors.sample,
            "loss_curve": self.loss_curve,
        }
        if self._attributes is not None:
            arrays.update(self._attributes.to_arrays())
        if self.user_features is not None:
            arrays["user_features"] = self.user_features
        settings = {name: getattr(self, name) for name in _SETTINGS}
        numbers = [factors.negative_weight, factors.mean_rating, factors.liked_rating, factors.disliked_rating]
        write_arrays(folder / _FILE, arrays, {"settings": settings, "numbers": numbers})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, metadata = read_arrays(folder / _FILE)
        scorer = cls(**metadata["settings"], user_features=arrays.get("user_features"))
        scorer.loss_curve = arrays["loss_curve"]
        scorer._factors = ItemFactors(arrays["vectors"], arrays["sample"], *metadata["numbers"])
        scorer._attributes = AttributeMap.from_arrays(arrays)
        return scorer

    def _free_columns(self, *, fixed_column: int) -> FloatArray:
        """1 for columns that are learned, 0 for the fixed 1, and for every bias column where there are no biases."""
        free = np.ones(self.embedding_size + 2, dtype=np.float32)
        free[-2:] = float(self.biases)
        free[fixed_column] = 0.0
        return free

    def _prior(self, user_rows: IntArray) -> tuple[FloatArray, np.ndarray]:
        """Vectors that attributes predict, 0 (and the fixed 1) where there are none, and where there are some."""
        n_columns = self._fitted().vectors.shape[1]
        prior = np.zeros((len(user_rows), n_columns), dtype=np.float32)
        prior[:, _ONE_OF_USER] = 1.0
        has_attributes = np.zeros(len(user_rows), dtype=np.bool_)
        if self._attributes is not None and self.user_features is not None:
            has_attributes = known_rows(user_rows, self.user_features)
            prior[has_attributes, :-1] = self._attributes.predict(self.user_features[user_rows[has_attributes]])
        return prior, has_attributes

    def _fitted(self) -> ItemFactors:
        if self._factors is None:
            raise NotFittedError("sgd_mf has no factors yet; call fit or load first")
        return self._factors


def default_negative_weight(n_items: int, items_a_user: float) -> float:
    """Return √(n_items / items_a_user) / 6: 5 on Amazon Scientific, .7 where a user has had one item in seventeen.

    What a user has not had yet is drawn as a negative too, and the fuller a user's share of the catalogue, the harder
    a fixed weight pushes down just what should be found. A rule of thumb between the best values of two data sets.
    """
    return float(np.sqrt(n_items / items_a_user) / 6.0)


def _ratings_of_signs(past: Interactions, otherwise: float) -> tuple[float, float]:
    """Mean rating of liked and of disliked events, ``otherwise`` where there are none."""
    rated = ~np.isnan(past.ratings)
    means = []
    for chosen in (rated & (past.weights > 0), rated & (past.weights <= 0)):
        means.append(float(past.ratings[chosen].mean()) if chosen.any() else otherwise)
    return means[0], means[1]
