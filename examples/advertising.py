"""Which ad to show? Another system's bids go in as ``upstream_score``; what a shown ad earns is bid × probability.

The sample shop sells places in its lists: 30 items a user, each with a bid that says what its seller pays if the user
takes it. Bids are drawn: a price a seller, half as much again for users who looked at the seller's category. Lists of
the past, with their bids, are the ``impressions`` that the fit learns from, so that probabilities are of such lists. On
later lists three orders are compared by what the first three places earn: by bid, by probability, and by their product.

    python examples/advertising.py
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from llm_rerank import Reranker, RerankerConfig, load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.statistics import bootstrap_interval, paired_difference

ADS_A_LIST = 30
PLACES = 3
WEEKS = 4
WEEK_S = 7 * 86_400


def lists_with_bids(trial: Trial, users: np.ndarray, at: int, seed: int) -> pd.DataFrame:
    """Draw each user's ads at a moment: user_id, item_id, timestamp, upstream_score (the bid).

    Half of a list are drawn by how often they were bought, half evenly; what the user has had is not advertised.
    """
    rng = np.random.default_rng(seed)
    events, items = trial.interactions, trial.items
    known = events[(events["timestamp"] < at) & events["item_id"].notna()]
    had = known.groupby("user_id")["item_id"].agg(set).to_dict()
    category = dict(zip(items.ids, items.frame["categories"].astype(str), strict=True))
    looked = known.assign(category=known["item_id"].map(category)).groupby("user_id")["category"].agg(set).to_dict()
    # a seller's price does not change from list to list
    price = dict(zip(items.ids, np.random.default_rng(0).lognormal(0.0, 0.5, len(items)), strict=True))
    weights = 0.5 * (trial.item_support + 1) / (trial.item_support + 1).sum() + 0.5 / len(items)
    rows = []
    for user in users:
        drawn = rng.choice(items.ids, size=ADS_A_LIST, replace=False, p=weights)
        for item in drawn:
            if item not in had.get(user, ()):
                wooed = category[item] in looked.get(user, ())
                rows.append((user, item, at, price[item] * (1.5 if wooed else 1.0)))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "upstream_score"])


def earned(result: pd.DataFrame, order: pd.Series, taken: set[tuple[str, str]]) -> np.ndarray:
    """Sum the bids of the ads that were taken among each user's first places: float64, shape (n_users,)."""
    shown = result.assign(order=order).sort_values(["user_id", "order"], ascending=[True, False], kind="stable")
    shown = shown[shown.groupby("user_id").cumcount() < PLACES]
    hit = [pair in taken for pair in zip(shown["user_id"], shown["item_id"], strict=True)]
    paid = (shown["upstream_score"] * hit).groupby(shown["user_id"]).sum()
    return paid.reindex(result["user_id"].unique(), fill_value=0.0).to_numpy()


def main() -> None:
    """Fit with the lists of the past, order later ones three ways, print what each earns."""
    shop = load_dataset("sample")
    trial = hold_out(shop, split="test")
    assert trial.at is not None
    everybody = trial.interactions["user_id"].unique()
    past = [lists_with_bids(trial, everybody, trial.at - week * WEEK_S, seed=week) for week in range(1, WEEKS + 1)]
    reranker = Reranker(RerankerConfig(sequence="off", semantic="off", cross_encoder="off"))
    reranker.fit(trial.interactions, trial.item_frame, users=trial.user_frame, impressions=pd.concat(past))

    ads = lists_with_bids(trial, trial.user_ids, trial.at, seed=0).drop(columns="timestamp")
    result = reranker.rerank(ads, at=trial.at)
    targets = trial.cases.targets
    taken = set(zip(trial.user_ids[targets.row_of_value], trial.items.ids[targets.values], strict=True))
    orders = {
        "bid": result["upstream_score"],
        "probability": result["probability"],
        "bid × probability": result["upstream_score"] * result["probability"],
    }
    earnings = {name: earned(result, order, taken) for name, order in orders.items()}
    print(f"\n{len(trial.user_ids):,} users, {len(result):,} ads, the first {PLACES} places; earned a user, by order")
    for name, paid in earnings.items():
        interval = bootstrap_interval(paid)
        print(f"  {name:18} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]")
    for other in ("bid", "probability"):
        gain = paired_difference(earnings["bid × probability"], earnings[other])
        print(f"  product over {other:12} {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p:.4f}")
    expected = orders["bid × probability"]
    print(f"\none list, and what its first {PLACES} are expected to earn, given that the user takes something new:")
    one = result.assign(expected=expected)[result["user_id"] == trial.user_ids[0]].nlargest(PLACES, "expected")
    titles = shop.items[["item_id", "title"]]
    print(
        one.merge(titles, on="item_id")[["title", "upstream_score", "probability", "expected"]].to_string(index=False)
    )


if __name__ == "__main__":
    main()
