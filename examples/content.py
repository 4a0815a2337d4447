"""Music, films, articles: what somebody has heard or read so far, and the words that they type now.

Last.fm: artists are described by the words that listeners wrote on them. A fifth of the listeners are strangers to the
fit; of the others a search of such a word stands before the artist that they wrote it on (simulated: the file has no
searches, and no times). Then each stranger types one of their own words, and should find the artists that they wrote it
on: from nothing, from the word, from what else they listen to, and from both.

    python examples/content.py DIR            # DIR holds the published files; words alone
    python examples/content.py DIR encoder    # the sentence encoder's vectors too
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from llm_rerank import Reranker, RerankerConfig, load_dataset
from llm_rerank.data.datasets import Dataset
from llm_rerank.data.frames import id_codes
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.statistics import bootstrap_interval
from llm_rerank.types import DataError, Ragged

USAGE = "usage: python examples/content.py DIR [encoder]"
LEAST_LISTENERS = 5
SHARE_OF_STRANGERS = 0.2
TAGS_OF_AN_ARTIST = 5
K = 10


def known_artists(dataset: Dataset) -> Dataset:
    """Keep artists that enough people listen to, and what was written on them."""
    listeners = dataset.interactions.groupby("item_id")["user_id"].nunique()
    kept = set(listeners.index[listeners >= LEAST_LISTENERS])
    tables = {"taggings": dataset.tables["taggings"]}
    found = [table[table["item_id"].isin(kept)] for table in (dataset.interactions, dataset.items, tables["taggings"])]
    return replace(dataset, interactions=found[0], items=found[1], tables={"taggings": found[2]})


def described(items: pd.DataFrame, taggings: pd.DataFrame) -> pd.DataFrame:
    """Describe each artist by the words written on them most often: item_id, title, description."""
    counts = taggings.value_counts(["item_id", "tag"]).rename("n").reset_index()
    counts = counts.sort_values(["item_id", "n", "tag"], ascending=[True, False, True])
    words = counts[counts.groupby("item_id").cumcount() < TAGS_OF_AN_ARTIST].groupby("item_id")["tag"].agg(", ".join)
    return items[["item_id", "title"]].assign(description=items["item_id"].map(words).fillna(""))


def events_with_searches(listens: pd.DataFrame, taggings: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Order each user's artists by their drawn positions; before a tagged one stands a search of one of its words."""
    events = listens[["user_id", "item_id", "timestamp"]].assign(event="interaction")
    events["timestamp"] *= 2
    one_word = taggings.sample(frac=1.0, random_state=seed).drop_duplicates(["user_id", "item_id"])
    searched = events.merge(one_word, on=["user_id", "item_id"])
    searched = searched.assign(event="search", query=searched["tag"], item_id=None, timestamp=searched["timestamp"] - 1)
    return pd.concat([events, searched[["user_id", "item_id", "timestamp", "event", "query"]]], ignore_index=True)


def asked(taggings: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Draw one word a stranger: user_id, item_id, tag, a row for each artist that they wrote it on."""
    drawn = taggings.sample(frac=1.0, random_state=seed).drop_duplicates("user_id")[["user_id", "tag"]]
    return taggings.merge(drawn, on=["user_id", "tag"])


def questions(listens: pd.DataFrame, wanted: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Lay out what is known of each stranger: interactions of what else they listen to, of their word, of both."""
    targets = pd.MultiIndex.from_frame(wanted[["user_id", "item_id"]])
    others = listens[~pd.MultiIndex.from_frame(listens[["user_id", "item_id"]]).isin(targets)]
    others = others[others["user_id"].isin(wanted["user_id"])][["user_id", "item_id", "timestamp"]]
    others = others.assign(event="interaction")
    words = wanted.drop_duplicates("user_id")
    typed = pd.DataFrame(
        {"user_id": words["user_id"], "item_id": None, "query": words["tag"], "event": "search"}
    ).assign(timestamp=listens["timestamp"].max() + 1)
    both = pd.concat([others, typed], ignore_index=True)
    return {"the word alone": typed, "what else they listen to": others, "both": both}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how well each kind of knowledge finds the artists, and one stranger's list without and with the word."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        dataset = known_artists(load_dataset("lastfm_friends", *given[:1]))
    except DataError as error:
        raise SystemExit(f"{USAGE}\n{error}") from None
    listens, taggings = dataset.interactions, dataset.tables["taggings"]
    users = np.random.default_rng(0).permutation(listens["user_id"].unique())
    strangers = set(users[: round(SHARE_OF_STRANGERS * len(users))])
    strange, strange_tags = listens["user_id"].isin(strangers), taggings["user_id"].isin(strangers)
    items = described(dataset.items, taggings[~strange_tags])
    config = RerankerConfig(sequence="off", semantic="auto" if "encoder" in given[1:] else "off", cross_encoder="off")
    events = events_with_searches(listens[~strange], taggings[~strange_tags])
    reranker = Reranker(config).fit(events, items, time_unit="position")

    wanted = asked(taggings[strange_tags])
    ids = wanted["user_id"].unique()
    catalogue = items["item_id"].to_numpy()
    rows, codes = id_codes(wanted["user_id"], ids), id_codes(wanted["item_id"], catalogue)
    targets = Ragged.from_lists([codes[rows == row] for row in range(len(ids))])
    print(f"\n{len(ids)} strangers, a word each, {len(codes):,} artists to find among {len(catalogue):,}")
    known: dict[str, pd.DataFrame | None] = {"nothing": None, **questions(listens[strange], wanted)}
    lists = {name: reranker.recommend(ids.tolist(), histories=given, k=K) for name, given in known.items()}
    for name, shown in lists.items():
        found = [id_codes(own["item_id"], catalogue) for _, own in shown.groupby("user_id", sort=False)]
        hits = hit_matrix(Ragged.from_lists(found), targets, K)
        interval = bootstrap_interval(ndcg_at_k(hits, targets.lengths, K))
        rate = hit_rate_at_k(hits, targets.lengths, K).mean()
        print(f"  {name:24} NDCG@{K} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}], HR@{K} {rate:.3f}")

    user = ids[0]
    print(f"\nstranger {user}, who types {wanted['tag'].iloc[0]!r}; * = wrote it on them")
    own = set(wanted[wanted["user_id"] == user]["item_id"])
    titles = items.set_index("item_id")["title"]
    for name, shown in lists.items():
        first = shown[shown["user_id"] == user]["item_id"]
        print(f"  {name}: {', '.join(('*' if item in own else '') + titles[item] for item in first)}")


if __name__ == "__main__":
    main()
