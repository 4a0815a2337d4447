"""Whom may one know? Items are people: a history is a user's friends, and a person's text is the music they play.

Last.fm, 1,892 users. A tenth of the friendships is taken out, in both directions, before the fit; then each user who
lost one is asked for ten people, themselves and their present friends excluded. Beside the reranker stand what a social
site would try first: people with many friends, and people with many friends in common (Adamic and Adar 2003: each
friend in common counts 1 / log of how many friends they have).

    python examples/friends.py DIR        # DIR holds the published files
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from llm_rerank import Reranker, RerankerConfig, load_dataset
from llm_rerank.data.datasets import Dataset
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.statistics import bootstrap_interval, paired_difference
from llm_rerank.types import BoolArray, DataError, FloatArray, Ragged

USAGE = "usage: python examples/friends.py DIR"
HELD_OUT = 0.1
ARTISTS_OF_A_PERSON = 15
K = 10


def friendships(dataset: Dataset) -> tuple[pd.Index, BoolArray]:
    """Read who is whose friend: ids of people, and bool, shape (n_people, n_people), symmetric."""
    pairs = dataset.tables["friends"]
    people = pd.Index(np.union1d(pairs["user_id"], pairs["friend_id"]), name="item_id")
    friends = np.zeros((len(people), len(people)), dtype=np.bool_)
    friends[people.get_indexer(pairs["user_id"]), people.get_indexer(pairs["friend_id"])] = True
    return people, friends | friends.T


def held_out(friends: BoolArray, seed: int = 0) -> BoolArray:
    """Draw a tenth of the friendships; both directions of one go together. Bool, as ``friends``."""
    rows, columns = np.nonzero(np.triu(friends))
    drawn = np.random.default_rng(seed).random(len(rows)) < HELD_OUT
    taken = np.zeros_like(friends)
    taken[rows[drawn], columns[drawn]] = True
    return taken | taken.T


def people_table(dataset: Dataset, people: pd.Index) -> pd.DataFrame:
    """Describe each person by the artists they play most: item_id, title, description."""
    plays = dataset.interactions.merge(dataset.items[["item_id", "title"]], on="item_id")
    plays = plays.sort_values(["user_id", "plays"], ascending=[True, False], kind="stable")
    best = plays[plays.groupby("user_id").cumcount() < ARTISTS_OF_A_PERSON]
    artists = best.groupby("user_id")["title"].agg(", ".join).reindex(people).fillna("")
    table = artists.rename("description").reset_index()
    return table.assign(title=[f"listener {person}" for person in people])


def fitted(people: pd.DataFrame, known: BoolArray, seed: int = 0) -> Reranker:
    """Fit on the known friendships, each an event of both; there are no times, so their order is drawn."""
    users, friends = np.nonzero(known)
    ids = people["item_id"].to_numpy()
    order = np.random.default_rng(seed).permutation(len(users))
    events = pd.DataFrame({"user_id": ids[users], "item_id": ids[friends], "timestamp": order, "event": "favourite"})
    # words of artists' names need no language model; leave these out to see what nets and encoder add
    config = RerankerConfig(sequence="off", semantic="off", cross_encoder="off", seed=seed)
    return Reranker(config).fit(events, people, time_unit="position")


def suggestions(reranker: Reranker, asked: Sequence[int]) -> pd.DataFrame:
    """Suggest K people to each asked user, never themselves: columns as ``Reranker.recommend`` gives them."""
    lists = reranker.recommend(asked, k=K + 1)  # one more, for the user may be on the list
    lists = lists[lists["user_id"] != lists["item_id"]]
    lists = lists.assign(rank=lists.groupby("user_id").cumcount() + 1)
    return lists[lists["rank"] <= K]


def best(scores: FloatArray, known: BoolArray, rows: np.ndarray) -> Ragged:
    """Rank people by scores, shape (n_people, n_people), for these rows: neither themselves nor present friends."""
    allowed = np.where(known | np.eye(len(known), dtype=np.bool_), -np.inf, scores)[rows]
    return Ragged.from_lists(list(np.argsort(-allowed, axis=1, kind="stable")[:, :K]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how often the lost friend is among the first ten, and one user's suggestions with a reason."""
    try:
        dataset = load_dataset("lastfm_friends", *(sys.argv[1:2] if arguments is None else arguments))
    except DataError as error:
        raise SystemExit(f"{USAGE}\n{error}") from None
    people, friends = friendships(dataset)
    lost = held_out(friends)
    known = friends & ~lost
    table = people_table(dataset, people)
    reranker = fitted(table, known)
    rows = np.flatnonzero(lost.any(axis=1) & known.any(axis=1))
    targets = Ragged.from_lists([np.flatnonzero(lost[row]) for row in rows])
    lists = suggestions(reranker, people[rows].tolist())
    found = lists.groupby("user_id")["item_id"].agg(people.get_indexer).reindex(people[rows])
    n_friends = known.sum(axis=0).astype(np.float64)
    common = (known / np.log(np.maximum(n_friends, 2.0))) @ known
    ranked = {
        "many friends": best(np.broadcast_to(n_friends, known.shape), known, rows),
        "friends in common": best(common, known, rows),
        "reranker": Ragged.from_lists(found.tolist()),
    }
    print(f"\n{len(rows):,} users lost {len(targets.values):,} friends; {len(people):,} people to choose from")
    by_method = {}
    for name, list_of in ranked.items():
        hits = hit_matrix(list_of, targets, K)
        by_method[name] = ndcg_at_k(hits, targets.lengths, K)
        interval = bootstrap_interval(by_method[name])
        rate = hit_rate_at_k(hits, targets.lengths, K).mean()
        print(f"  {name:18} NDCG@{K} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}], HR@{K} {rate:.4f}")
    gain = paired_difference(by_method["reranker"], by_method["friends in common"])
    print(f"  reranker over friends in common {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p:.4f}")
    user = people[rows[0]]
    first = lists[lists["user_id"] == user]["item_id"].iloc[0]
    print(f"\n{reranker.explain(user, first)}")


if __name__ == "__main__":
    main()
