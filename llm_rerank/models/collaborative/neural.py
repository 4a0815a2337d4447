"""The article's neural model (chapter 5.2), corrected: pooled history and attributes, item, hidden layer, score.

Training is in ``neural_training.py``; scoring is numpy.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from scipy.sparse import csr_matrix, diags_array

from llm_rerank.data.cases import build_cases
from llm_rerank.data.splits import hash_users
from llm_rerank.models.changes import codes_to_read, longer
from llm_rerank.models.collaborative.attributes import check_features, feature_scale, known_rows
from llm_rerank.models.scoring import history_matrix, score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import BoolArray, Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

Form = Literal["implicit", "explicit"]

_FILE = "neural.safetensors"
_HELD_OUT_BUCKETS = 10  # one user in ten decides when to stop
_BLOCK_CELLS = 2**18  # hidden units held at once while scoring: 1 MiB of float32 stays in the cache
_CURVES = ("loss_curve", "held_out_curve", "recall_curve", "accuracy_curve")
_SETTINGS = (
    "form",
    "embedding_size",
    "hidden_size",
    "learning_rate",
    "epochs",
    "patience",
    "batch_size",
    "dropout",
    "negatives",
    "negative_weight",
    "max_targets",
    "history_length",
    "decay",
)


class NeuralScorer:
    """score(user, item) = w · relu(A·pool(history) + B·attributes + C·item + b) + c.

    The article's model, corrected. It concatenates a user and an item embedding and applies one *linear* layer:
    w·[u; v] = w_u·u + w_v·v, where the first term is the same for every item, so every user would get the same order.
    A hidden layer with a kink between makes the order the user's own. Its code unpacks string keys as pairs and looks
    up an id outside its table; here ids are checked codes, and what stands for the user is not an id but the mean of
    the history's embeddings, weighted by event and faded by ``decay`` a visit (disliked items count negatively), so
    newcomers need no retraining. A dot product of the same embeddings is hard to beat for such a layer (Rendle et al.
    2020, arXiv:2005.09683), so the units start out as a similarity (``Network``), which takes NDCG@10 on
    Amazon Scientific from .034 to .051; the model is here because the article has it, not because it leads.

    form "explicit": squared error on ratings. "implicit": log(1 + e^−s) + ``negative_weight`` × mean log(1 + e^s_j)
    over items drawn at random (squared error over ones would be fitted by a constant). One training row is one event
    with the history strictly before it. Adam; stops when the loss of one user in ten, who are not trained on, has not
    fallen for ``patience`` epochs, and keeps the best epoch.

    embedding_size, hidden_size: lengths. learning_rate, epochs (at most): .001 and 100 as the article has them.
    negatives: items drawn a batch. max_targets: events trained on, a random draw where there are more.
    history_length: newest events of a training row; scoring reads whole histories. user_features: float32, shape
    (n_rows of the users frame, n_features), all finite; saved with the model.
    Scores: NaN for items that no trained user liked and for users with neither a known item nor attributes.

    The first layer is a sum of a user part and an item part, computed once a user and once an item; only the kink and
    the output are computed a pair, in blocks of at most 2¹⁸ hidden units.

    loss_curve, held_out_curve: float32, shape (epochs run,), mean loss a row. recall_curve, accuracy_curve: the same
    shape, implicit form only (else empty): shares of held-out events whose item is among the ten best, or the best, of
    all items of the fit, nothing removed (of more than 500 events so many); chance is 10 / n_items and 1 / n_items.
    Where fewer than ten events could be held out, all but ``loss_curve`` are of the training's events.
    """

    name = "neural"
    depends_on_list = False

    def __init__(
        self,
        *,
        form: Form = "implicit",
        embedding_size: int = 64,
        hidden_size: int = 128,
        learning_rate: float = 0.001,
        epochs: int = 100,
        patience: int = 3,
        batch_size: int = 256,
        dropout: float = 0.2,
        negatives: int = 64,
        negative_weight: float = 20.0,
        max_targets: int = 200_000,
        history_length: int = 20,
        decay: float = 0.45,
        user_features: FloatArray | None = None,
    ) -> None:
        if form not in get_args(Form):
            raise DataError(f"form is {form!r}; it must be one of {', '.join(get_args(Form))}")
        if not 0 <= dropout < 1:
            raise DataError(f"dropout is {dropout}; it must lie in [0, 1)")
        if not decay >= 0:
            raise DataError(f"decay is {decay}; it must be 0 or more, for example 0.15 a visit")
        self.form: Form = form
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.dropout = dropout
        self.negatives = negatives
        self.negative_weight = negative_weight
        self.max_targets = max_targets
        self.history_length = history_length
        self.decay = decay
        for name in _SETTINGS[1:]:
            if name not in ("dropout", "decay") and not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)}; it must be above 0")
        self.user_features = None if user_features is None else check_features(user_features)
        self.loss_curve: FloatArray = np.empty(0, dtype=np.float32)
        self.held_out_curve: FloatArray = np.empty(0, dtype=np.float32)
        self.recall_curve: FloatArray = np.empty(0, dtype=np.float32)
        self.accuracy_curve: FloatArray = np.empty(0, dtype=np.float32)
        self._tables: dict[str, np.ndarray] | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Train; the same seed gives the same model on the same machine.

        Raises DataError where there is nothing to learn from, and where training diverged.
        """
        from llm_rerank.models.collaborative.neural_training import TrainingRows, TrainingSettings, train

        wanted = ~np.isnan(past.ratings) if self.form == "explicit" else past.weights > 0
        events = np.flatnonzero(wanted & (past.items >= 0))
        rng = np.random.default_rng(seed)
        if len(events) > self.max_targets:
            events = np.sort(rng.choice(events, self.max_targets, replace=False))
        mean, deviation = self._feature_scale(past.user_rows)
        cases = build_cases(past, past.users[events], past.times[events], history_length=self.history_length)
        histories = self._pooling(cases, past.n_items)
        readable = (np.diff(histories.indptr) > 0) | self._has_attributes(cases.user_rows)
        if not readable.any():
            raise DataError(
                f"neural ({self.form}) found no event to learn from whose user has a history or attributes; "
                "check event, weight, rating and timestamp"
            )
        ratings = past.ratings[events] if self.form == "explicit" else np.zeros(len(events), dtype=np.float32)
        mean_rating = np.float32(ratings[readable].mean())
        rows = TrainingRows(
            histories,
            self._attributes(cases.user_rows, mean, deviation),
            past.items[events],
            ratings - mean_rating,
            past.weights[events] if self.form == "implicit" else np.ones(len(events), dtype=np.float32),
        )
        is_held_out = hash_users(past.user_ids, _HELD_OUT_BUCKETS, salt="neural")[past.users] == 0
        if not (readable & ~is_held_out[events]).any():
            is_held_out[:] = False  # a handful of users: nobody can be spared
        known = np.zeros(past.n_items, dtype=np.bool_)
        known[past.items[wanted & (past.items >= 0) & ~is_held_out]] = True

        settings = TrainingSettings(
            explicit=self.form == "explicit",
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            patience=self.patience,
            batch_size=self.batch_size,
            dropout=self.dropout,
            negatives=self.negatives,
            negative_weight=self.negative_weight,
        )
        tables, curves = train(
            rows.take(np.flatnonzero(readable & ~is_held_out[events])),
            rows.take(np.flatnonzero(readable & is_held_out[events])),
            np.flatnonzero(known),
            settings,
            seed=seed,
        )
        self.loss_curve, self.held_out_curve, self.recall_curve, self.accuracy_curve = curves
        tables["item_table"][~known] = np.nan  # runs through the layer into the scores
        tables["output_bias"] += mean_rating
        self._tables = {**tables, "known": known, "feature_mean": mean, "feature_deviation": deviation}
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; new items have no embedding before a fit, so scores are NaN."""
        tables = self._fitted()
        codes_to_read(len(tables["known"]), items, changed)
        longer_tables = {
            "item_table": longer(tables["item_table"], len(items), np.nan),
            "history_table": longer(tables["history_table"], len(items), 0.0),
            "known": longer(tables["known"], len(items), fill=False),
        }
        grown = copy.copy(self)
        grown._tables = {**tables, **longer_tables}
        return grown

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items). Ratings in the explicit form, log-odds in the implicit."""
        tables = self._fitted()
        users, item_part, weights = self._user_part(cases), tables["item_table"], tables["output_weights"]
        scores = np.empty((len(cases), len(item_part)), dtype=np.float32)
        n_users = max(1, _BLOCK_CELLS // max(1, item_part.size))
        n_items = max(1, _BLOCK_CELLS // (n_users * self.hidden_size))
        for row in range(0, len(cases), n_users):
            for column in range(0, len(item_part), n_items):
                hidden = users[row : row + n_users, None, :] + item_part[None, column : column + n_items, :]
                np.maximum(hidden, 0.0, out=hidden)
                scores[row : row + n_users, column : column + n_items] = hidden @ weights
        return scores + tables["output_bias"]

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write the tables, ``user_features`` and the settings to one file."""
        arrays = {**self._fitted(), **{name: getattr(self, name) for name in _CURVES}}
        if self.user_features is not None:
            arrays["user_features"] = self.user_features
        write_arrays(folder / _FILE, arrays, {name: getattr(self, name) for name in _SETTINGS})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote; needs no torch."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings, user_features=arrays.pop("user_features", None))
        for name in _CURVES:  # a folder of before has not all of them
            setattr(scorer, name, arrays.pop(name, np.empty(0, dtype=np.float32)))
        scorer._tables = arrays
        return scorer

    def _user_part(self, cases: Cases) -> FloatArray:
        """Sum what each user gives to each hidden unit: float32, shape (n_cases, hidden_size); NaN: nothing known."""
        tables = self._fitted()
        histories = self._pooling(cases, len(tables["item_table"]), tables["known"])
        attributes = self._attributes(cases.user_rows, tables["feature_mean"], tables["feature_deviation"])
        hidden = histories @ tables["history_table"] + attributes @ tables["attribute_weights"] + tables["hidden_bias"]
        hidden[(np.diff(histories.indptr) == 0) & ~self._has_attributes(cases.user_rows)] = np.nan
        return hidden

    def _pooling(self, cases: Cases, n_items: int, known: BoolArray | None = None) -> csr_matrix:
        """Weights of the mean over each history: float32 CSR, rows of absolute sum 1 (or 0)."""
        rows = history_matrix(cases, n_items, decay=self.decay, positive_only=False)
        if known is not None:
            rows = csr_matrix(rows @ diags_array(known.astype(np.float32)))
            rows.eliminate_zeros()
        totals = np.asarray(abs(rows).sum(axis=1)).ravel()
        return csr_matrix(diags_array(1.0 / np.where(totals > 0, totals, 1.0)) @ rows).astype(np.float32)

    def _feature_scale(self, user_rows: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation of the attributes of the fit's users: float32, both shape (n_features,)."""
        if self.user_features is None or not self._has_attributes(user_rows).any():
            n_features = 0 if self.user_features is None else self.user_features.shape[1]
            return np.zeros(n_features, dtype=np.float32), np.ones(n_features, dtype=np.float32)
        known = self.user_features[user_rows[self._has_attributes(user_rows)]]
        mean, deviation = feature_scale(known)
        return mean.astype(np.float32), deviation.astype(np.float32)

    def _attributes(self, user_rows: IntArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:
        """Standardised attributes, 0 (the mean) where unknown: float32, shape (n_cases, n_features)."""
        attributes = np.zeros((len(user_rows), len(mean)), dtype=np.float32)
        has_attributes = self._has_attributes(user_rows)
        if self.user_features is not None:
            attributes[has_attributes] = (self.user_features[user_rows[has_attributes]] - mean) / deviation
        return attributes

    def _has_attributes(self, user_rows: IntArray) -> BoolArray:
        if self.user_features is None:
            return np.zeros(len(user_rows), dtype=np.bool_)
        return known_rows(user_rows, self.user_features)

    def _fitted(self) -> dict[str, np.ndarray]:
        if self._tables is None:
            raise NotFittedError("neural has no weights yet; call fit or load first")
        return self._tables
