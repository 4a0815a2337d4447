"""Films, articles, songs: what somebody has read so far, and the words that they type now.

MovieLens, where 61 readers wrote tags on films, stands in for a library of any kind. Ratings from 3.5 on are what a
reader liked; lower ones are dislikes. The tags that were written first join the fit as searches of who wrote them; the
later ones are typed by strangers, of whom nothing else is known, and should find the film they were written on.

    python examples/content.py DIR            # DIR holds the published files; words alone
    python examples/content.py DIR encoder    # the sentence encoder's vectors too
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from llm_rerank import Reranker, RerankerConfig, load_dataset
from llm_rerank.data.datasets import Dataset

LIKED = 3.5
MOST_FILMS_OF_A_TAG = 5
SHARE_ASKED = 0.3
K = 10
READER, PHRASE = 15, "pirates at sea"


def phrases(dataset: Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split tags in two by time: user_id, item_id, query, timestamp of the earlier and of the later ones.

    A tag that one reader wrote on many films ("getdvd") is a mark on their own shelf and no search: left out.
    """
    tags = dataset.tables["tags"].rename(columns={"tag": "query"})
    n_films = tags.groupby(["user_id", "query"])["item_id"].transform("nunique")
    known = tags["item_id"].isin(dataset.items["item_id"])
    tags = tags[known & (n_films <= MOST_FILMS_OF_A_TAG)].sort_values("timestamp", kind="stable")
    n_early = round(len(tags) * (1 - SHARE_ASKED))
    return tags[:n_early], tags[n_early:].drop_duplicates("query")


def searches(tags: pd.DataFrame) -> pd.DataFrame:
    """Make searches of tags: words without an item."""
    return tags[["user_id", "timestamp", "query"]].assign(event="search", item_id=None)


def fitted(dataset: Dataset, early: pd.DataFrame, *, encoder: bool) -> Reranker:
    """Fit on all ratings and on the early searches; whoever types the later ones is a stranger to it."""
    events = pd.concat([dataset.interactions, searches(early)], ignore_index=True)
    config = RerankerConfig(
        min_rating=LIKED, sequence="off", semantic="always" if encoder else "off", cross_encoder="off"
    )
    return Reranker(config).fit(events, dataset.items)


def places(reranker: Reranker, asked: pd.DataFrame) -> np.ndarray:
    """Place of the tagged film on each stranger's list, float64, from 1; infinite where it is not on it."""
    strangers = asked.assign(user_id=[f"stranger {number}" for number in range(len(asked))])
    lists = reranker.recommend(strangers["user_id"].tolist(), histories=searches(strangers), k=100)
    found = strangers.merge(lists, on=["user_id", "item_id"], how="left")
    return found["rank"].fillna(np.inf).to_numpy(dtype=np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how often a phrase alone finds its film, and how one reader's list changes when they search."""
    folder, *words = sys.argv[1:] if arguments is None else arguments
    dataset = load_dataset("movielens_small", folder)
    early, asked = phrases(dataset)
    reranker = fitted(dataset, early, encoder="encoder" in words)
    found = places(reranker, asked)
    without = places(reranker, asked.assign(query=""))
    print(f"\n{len(asked)} phrases of strangers, {len(dataset.items):,} films to choose from")
    for name, ranks in (("phrase", found), ("no phrase", without)):
        hits = ", ".join(f"HR@{k} {np.mean(ranks <= k):.3f}" for k in (K, 100))
        print(f"  {name:10} NDCG@{K} {np.where(ranks <= K, 1 / np.log2(ranks + 1), 0).mean():.4f}, {hits}")

    titles = dataset.items[["item_id", "title"]]
    past = dataset.interactions[dataset.interactions["user_id"] == READER]
    typed = pd.DataFrame({"user_id": [READER], "timestamp": [past["timestamp"].max() + 60], "query": [PHRASE]})
    before = reranker.recommend([READER], histories=past, k=K)
    after = reranker.recommend([READER], histories=pd.concat([past, searches(typed)]), k=K)
    for name, shown in (("before", before), (f"after a search for {PHRASE!r}", after)):
        print(f"\nreader {READER} {name}:")
        print(shown.merge(titles, on="item_id")[["rank", "title", "probability"]].to_string(index=False))


if __name__ == "__main__":
    main()
