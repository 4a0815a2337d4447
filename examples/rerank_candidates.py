"""The second selection: another recommender's candidates go in, a better and shorter list comes out.

The other recommender is a plain one here, the best sellers of the last four weeks, the same for everybody. Its lists
are reranked, and only what is likely enough to be bought is kept.
"""

from pathlib import Path

import pandas as pd

from llm_rerank import Reranker, RerankerConfig, ThresholdConfig, load_dataset

N_CANDIDATES = 50
FOUR_WEEKS = 28 * 86_400


def best_sellers(events: pd.DataFrame, users: list[str]) -> pd.DataFrame:
    """Give each user the same candidates: user_id, item_id and units sold as upstream_score."""
    recent = events[(events["event"] == "purchase") & (events["timestamp"] > events["timestamp"].max() - FOUR_WEEKS)]
    sold = recent.groupby("item_id")["quantity"].sum().nlargest(N_CANDIDATES)
    rows = [(user, item, units) for user in users for item, units in sold.items()]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "upstream_score"])


def main() -> None:
    """Fit on the sample shop, rerank three users' candidates, show what is kept and why, save and load."""
    shop = load_dataset("sample")
    # kept: where precision and recall, equally weighted, were best on held-out users
    reranker = Reranker(RerankerConfig(threshold=ThresholdConfig("f_beta", 1.0)))
    reranker.fit(shop.interactions, shop.items, users=shop.users)

    users = shop.interactions["user_id"].drop_duplicates(keep="last").tail(3).tolist()
    candidates = best_sellers(shop.interactions, users)
    result = reranker.rerank(candidates).merge(shop.items[["item_id", "title"]], on="item_id")
    columns = ["rank", "title", "probability", "kept", "upstream_score"]
    for user, rows in result.groupby("user_id"):
        print(f"\n{user}: {rows['kept'].sum()} of {len(rows)} candidates kept")
        print(rows.sort_values("rank")[columns].head(5).to_string(index=False))

    folder = Path("shop")
    reranker.save(folder)
    again = Reranker.load(folder).rerank(candidates)["score"]
    difference = (again - reranker.rerank(candidates)["score"]).abs().max()
    print(f"\nsaved to {folder}, loaded again: the scores differ by {difference:.0e} at most")


if __name__ == "__main__":
    main()
