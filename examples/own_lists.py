"""Would the reranker have ordered your recommender's own lists better? Lists that were shown, judged by what followed.

    python examples/own_lists.py            # the bundled sample
    python examples/own_lists.py DIR        # Online Retail, in a folder that holds the published file

The recommender is a plain one here: at each visit it showed the best sellers of the four weeks before. Whoever keeps
such lists (who was shown what, when, with which score) gives them as they are, here or to
``llm-rerank evaluate orders.csv items.csv --impressions lists.csv``.
"""

import sys

import pandas as pd

from llm_rerank import RerankerConfig, evaluate_shop, load_dataset
from llm_rerank.data.datasets import Dataset
from llm_rerank.evaluation.systems import ShopEvaluation

N_SHOWN = 50
FOUR_WEEKS = pd.Timedelta(days=28)


def lists_shown(events: pd.DataFrame, last_days: int = 150) -> pd.DataFrame:
    """Give the list of each user's visit, a day with purchases, in the last months, as of the day before it."""
    bought = events[events["event"] == "purchase"]
    seconds = pd.api.types.is_numeric_dtype(bought["timestamp"])
    bought = bought.assign(day=pd.to_datetime(bought["timestamp"], unit="s" if seconds else None).dt.normalize())
    late = bought[bought["day"] > bought["day"].max() - pd.Timedelta(days=last_days)]
    tables = []
    for day, of_day in late.groupby("day"):
        before = bought[(bought["day"] < day) & (bought["day"] >= day - FOUR_WEEKS)]
        sold = before["item_id"].value_counts().head(N_SHOWN).rename("upstream_score").rename_axis("item_id")
        users = pd.DataFrame({"user_id": of_day["user_id"].unique(), "timestamp": day})
        tables.append(users.merge(sold.reset_index(), how="cross"))
    return pd.concat(tables, ignore_index=True)


def judged(shop: Dataset, config: RerankerConfig) -> ShopEvaluation:
    """Fit on what came before a cut, the earlier lists among it, and rerank the lists that were shown after it."""
    return evaluate_shop(shop.interactions, shop.items, impressions=lists_shown(shop.interactions), config=config)


def main() -> None:
    """Judge the sample's lists, or Online Retail's, and print every figure."""
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    shop = load_dataset("online_retail" if folder else "sample", folder)
    print(f"\n{judged(shop, RerankerConfig(cross_encoder='off')).table}")


if __name__ == "__main__":
    main()
