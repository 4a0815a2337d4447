"""Chapter 4 of the article, made to work: 100 users, 1,000 items, ratings of which one in five is known.

Gradient descent with learning rate .01 for 100 iterations, the loss watched; then a new user, once from a few ratings
and once from attributes alone. The ratings are drawn from a planted structure of rank 5, so how much of it comes back
can be measured. Run: python examples/matrix_factorization.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm_rerank.data.schema import validate_interactions, validate_items, validate_users
from llm_rerank.models.collaborative.factorization import SGDMatrixFactorization
from llm_rerank.types import Cases, DataReport, FloatArray, IntArray, Ragged

N_USERS, N_ITEMS, RANK, N_ATTRIBUTES = 100, 1000, 5, 3
N_NEW = 20
KNOWN_SHARE = 0.2
NOISE = 0.2
N_RATINGS_OF_NEW_USER = 30


@dataclass(frozen=True)
class Planted:
    """The truth: ratings float64, shape (N_USERS + N_NEW, N_ITEMS), of rank 5 around 3; the last users are new.

    attributes: float32, shape (N_USERS + N_NEW, N_ATTRIBUTES); they decide most of a user's taste.
    """

    ratings: np.ndarray
    attributes: FloatArray


@dataclass(frozen=True)
class Outcome:
    """What the example prints. Errors are root mean squares over ratings that the model has not seen."""

    loss_curve: FloatArray
    error_of_mean: float
    error_of_model: float
    error_of_folded_in: float
    error_of_attributes: float


def plant(seed: int = 0) -> Planted:
    """Draw R = 3 + UᵀV with U, V of equal rank, U mostly linear in the attributes."""
    rng = np.random.default_rng(seed)
    n_all = N_USERS + N_NEW
    attributes = rng.normal(size=(n_all, N_ATTRIBUTES))
    own = rng.normal(size=(RANK, n_all))
    users = 0.8 * rng.normal(size=(RANK, N_ATTRIBUTES)) @ attributes.T / np.sqrt(N_ATTRIBUTES) + 0.4 * own
    items = rng.normal(size=(RANK, N_ITEMS)) / np.sqrt(RANK)
    return Planted(3.0 + users.T @ items, attributes.astype(np.float32))


def fit_and_measure(planted: Planted, seed: int = 0) -> Outcome:
    """Fit on a fifth of the old users' ratings; measure on the rest of them and on the new users."""
    rng = np.random.default_rng(seed + 1)
    observed = planted.ratings + NOISE * rng.normal(size=planted.ratings.shape)
    known = rng.random((N_USERS, N_ITEMS)) < KNOWN_SHARE
    users, items = np.nonzero(known)
    ratings = observed[users, items].astype(np.float32)

    report = DataReport()
    catalogue = validate_items(
        pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": [f"item {code}" for code in range(N_ITEMS)]}),
        report=report,
    )
    people = validate_users(pd.DataFrame({"user_id": np.arange(len(planted.ratings))}), report=report)
    table = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users)), "rating": ratings})
    past = validate_interactions(table, catalogue, users=people, time_unit="position", report=report)
    model = SGDMatrixFactorization(form="explicit", embedding_size=RANK, user_features=planted.attributes)
    model.fit(past, catalogue, seed=seed)

    old = np.arange(N_USERS)
    new = np.arange(N_USERS, len(planted.ratings))
    old_vectors = model.fold_in_ratings(Ragged.from_lists([items[users == user] for user in old]), ratings)
    rated = Ragged.from_lists([rng.choice(N_ITEMS, N_RATINGS_OF_NEW_USER, replace=False) for _ in new])
    new_vectors = model.fold_in_ratings(
        rated, observed[new[rated.row_of_value], rated.values].astype(np.float32), user_rows=new
    )
    unseen = np.ones((N_NEW, N_ITEMS), dtype=bool)
    unseen[rated.row_of_value, rated.values] = False
    truth = planted.ratings[new]
    return Outcome(
        loss_curve=model.loss_curve,
        error_of_mean=_error(np.full_like(truth, ratings.mean()), truth, unseen),
        error_of_model=_error(model.predict(old_vectors), planted.ratings[old], ~known),
        error_of_folded_in=_error(model.predict(new_vectors), truth, unseen),
        error_of_attributes=_error(model.score_catalogue(newcomers(new)), truth, unseen),
    )


def newcomers(user_rows: IntArray) -> Cases:
    """Users of whom nothing is known but their attributes."""
    n_cases = len(user_rows)
    return Cases(
        user_rows=user_rows,
        times=np.zeros(n_cases, dtype=np.int64),
        history=Ragged.empty(n_cases),
        history_weights=np.empty(0, dtype=np.float32),
        history_times=np.empty(0, dtype=np.int64),
        queries=[""] * n_cases,
        candidates=Ragged.empty(n_cases),
        targets=Ragged.empty(n_cases),
    )


def _error(predicted: np.ndarray, truth: np.ndarray, cells: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predicted - truth)[cells] ** 2)))


def main() -> None:
    """Print the loss at iterations 1, 10, 50, 100 and the errors on what was not seen."""
    outcome = fit_and_measure(plant())
    print(f"{N_USERS} users x {N_ITEMS} items, {KNOWN_SHARE:.0%} of the ratings known, planted rank {RANK}")
    for iteration in (1, 10, 50, 100):
        print(f"iteration {iteration:>3}   mean squared error {outcome.loss_curve[iteration - 1]:.4f}")
    print("\nroot mean squared error on ratings that were not seen (true ratings, without noise)")
    print(f"  predicting the mean                      {outcome.error_of_mean:.3f}")
    print(f"  a user of the fit                        {outcome.error_of_model:.3f}")
    print(f"  a new user, folded in from {N_RATINGS_OF_NEW_USER} ratings    {outcome.error_of_folded_in:.3f}")
    print(f"  a new user, from attributes alone        {outcome.error_of_attributes:.3f}")


if __name__ == "__main__":
    main()
