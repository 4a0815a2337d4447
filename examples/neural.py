"""Chapter 5.2 of the article, made to work: a neural model of users and items, Adam for at most 100 epochs, all ranked.

The article concatenates a user's and an item's embedding and applies one linear layer, which gives every user the same
order; ``NeuralScorer`` says how that is corrected, and that a user is their history and attributes, not an id. On the
sample shop: what comes after a date is held out; loss, recall and accuracy of one user in ten are watched while the
model is trained on the others, and end it; then all items are ranked for those who came back after the date.

    python examples/neural.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm_rerank import load_dataset
from llm_rerank.data.cases import next_cases
from llm_rerank.evaluation.protocols import Trial, hold_out, rank_catalogue
from llm_rerank.metrics import Classification, classification, hit_matrix, recall_at_k
from llm_rerank.models.collaborative.neural import NeuralScorer
from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.models.scoring import retrieve
from llm_rerank.types import BoolArray, CatalogueScorer, FloatArray, Ragged

K = 10
N_SHOWN = 3
ATTRIBUTES = ["age", "gender", "region"]


@dataclass(frozen=True)
class Judged:
    """A model's first ten of all items: mean recall over users, and each item of each user as one decision."""

    recall: float
    decisions: Classification


def attributes(users: pd.DataFrame) -> FloatArray:
    """Attributes as numbers, unknown ages the mean, unknown words none: float32, shape (n_users, n_features)."""
    numbers = pd.get_dummies(users[ATTRIBUTES]).astype(np.float32)
    return numbers.fillna(numbers.mean()).to_numpy()


def fitted(trial: Trial, seed: int = 0) -> NeuralScorer:
    """Train on the past with the article's learning rate and epochs; half the usual hidden layer, for time."""
    users = None if trial.user_frame is None else attributes(trial.user_frame)
    model = NeuralScorer(hidden_size=64, learning_rate=0.001, epochs=100, user_features=users)
    return model.fit(trial.past, trial.items, seed=seed)


def judged(scorer: CatalogueScorer, trial: Trial) -> Judged:
    """Rank all items for every held-out user, what they have had left out, and judge the first ten."""
    ranked, targets = rank_catalogue(scorer, trial, K), trial.cases.targets
    recall = recall_at_k(hit_matrix(ranked, targets, K), targets.lengths, K)
    n_items = len(trial.items)
    return Judged(float(recall.mean()), classification(marked(ranked, n_items), marked(targets, n_items)))


def marked(rows: Ragged, n_items: int) -> BoolArray:
    """Mark the items of each row among all: bool, shape (n_rows × n_items,)."""
    cells = np.zeros((len(rows), n_items), dtype=np.bool_)
    cells[rows.row_of_value, rows.values] = True
    return cells.ravel()


def best_titles(model: NeuralScorer, trial: Trial, users: list[str]) -> dict[str, list[str]]:
    """Titles of the ten best of all items for each user, what they have had left out."""
    cases, had = next_cases(trial.past, users)
    ranked = retrieve(model, cases, K, exclude=had)
    titles = trial.items.frame["title"].to_numpy()
    return {user: titles[ranked[row]].tolist() for row, user in enumerate(users)}


def say(model: NeuralScorer, trial: Trial) -> None:
    """Print what each epoch came to, what the ranking is worth on later purchases, and three users' first ten."""
    best = int(np.argmin(model.held_out_curve))
    n_items = len(trial.items)
    print(f"\none user in ten watched; every item of their events to be found among all {n_items}, none left out")
    print(f"epoch    loss  held-out loss  recall@{K}  accuracy (base rate {1 / n_items:.4f})")
    for epoch in sorted({*range(0, len(model.loss_curve), 5), best, len(model.loss_curve) - 1}):
        losses = f"{epoch + 1:>5}  {model.loss_curve[epoch]:.4f}         {model.held_out_curve[epoch]:.4f}"
        shares = f"     {model.recall_curve[epoch]:.4f}    {model.accuracy_curve[epoch]:.4f}"
        print(losses + shares + ("  kept" if epoch == best else ""))

    print(f"\nlater purchases among the first {K} of all items, what the user has had left out")
    for scorer in (model, Popularity().fit(trial.past, trial.items)):
        found = judged(scorer, trial)
        decisions = found.decisions
        print(
            f"  {scorer.name:10} recall@{K} {found.recall:.4f}, accuracy {decisions.accuracy:.4f} "
            f"(base rate {decisions.base_rate:.4f}: no item taken)"
        )
    for user, titles in best_titles(model, trial, trial.user_ids[:N_SHOWN].tolist()).items():
        print(f"\n{user}")
        print("\n".join(f"  {rank:>2}  {title}" for rank, title in enumerate(titles, start=1)))


def main() -> None:
    """Hold out the end of the sample shop, train on what came before, rank all items for users who came back."""
    trial = hold_out(load_dataset("sample"), split="test")
    print(trial.describe())
    say(fitted(trial), trial)


if __name__ == "__main__":
    main()
