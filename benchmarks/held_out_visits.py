"""Is a held-out last event an easier question than the use? What its history knows of the visit that led to it.

    python -m benchmarks.held_out_visits --out FILE.json

Shops that record views and carts, here the bundled sample. First, the share of users whose history, as of the
decision, holds a look at the very item that they took: of last events decided at the purchase, or before the visit of
the last hour, day, week, or before any look; against the questions of a time window, which are asked as the use asks.
Then two fits on a draw of users too few for a time window: decided at the purchase, and as the library decides. What
each says of its own held-out users stands beside what lists of the future turned out to be worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks.calibration import JudgedLists
from llm_rerank.config import RerankerConfig
from llm_rerank.data import splits
from llm_rerank.data.datasets import Dataset, load_dataset
from llm_rerank.data.splits import HeldOut, first_unseen_targets, last_targets, quantile_time
from llm_rerank.evaluation.protocols import TimeCut, hold_out
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import Interactions

VISITS = {"at the purchase": 0, "hour": 3_600, "day": 86_400, "week": 604_800, "any look": 10**10}
"""Seconds before a purchase in which looks at the item belong to its visit."""


@contextmanager
def visits_of(seconds: int) -> Iterator[None]:
    """Let a visit be so long."""
    usual, splits.VISIT_SECONDS = splits.VISIT_SECONDS, seconds
    try:
        yield
    finally:
        splits.VISIT_SECONDS = usual


def share_with_look(events: Interactions, held_out: HeldOut) -> tuple[float, int]:
    """Share of users whose history, before the decision, has an event for one of their targets; and their number."""
    owner = np.full(events.n_users, -1, dtype=np.int64)
    owner[held_out.users] = np.arange(len(held_out.users))
    asked = owner[events.users]
    known = np.flatnonzero((asked >= 0) & (events.items >= 0))
    known = known[events.times[known] < held_out.times[asked[known]]]
    pairs = held_out.targets.row_of_value * events.n_items + held_out.targets.values
    looked = np.isin(asked[known] * events.n_items + events.items[known], pairs)
    return len(np.unique(asked[known][looked])) / len(held_out.users), len(held_out.users)


def drawn(dataset: Dataset, n_users: int, seed: int) -> Dataset:
    """Take the events of some users."""
    ids = dataset.interactions["user_id"].drop_duplicates().to_numpy()
    some = np.random.default_rng(seed).choice(ids, min(n_users, len(ids)), replace=False)
    events = dataset.interactions
    return replace(dataset, interactions=events[events["user_id"].isin(set(some))].reset_index(drop=True))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("held_out_visits", __doc__ or "", dataset="sample")
    parser.add_argument("--users", type=int, default=1_300, help="of the shop that is too small for a time window")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    dataset = load_dataset(options.dataset, options.data_dir)
    past = hold_out(dataset, TimeCut(), options.split).past
    shares: dict[str, Any] = {}
    for name, seconds in VISITS.items():
        with visits_of(seconds):
            shares[name] = share_with_look(past, last_targets(past))
    shares["time window"] = share_with_look(past, first_unseen_targets(past, quantile_time(past, 0.9)))
    trial = hold_out(drawn(dataset, options.users, options.seed), TimeCut(first_visit=True), options.split)
    fits: dict[str, Any] = {}
    for name, seconds in (("at the purchase", 0), ("as the library decides", splits.VISIT_SECONDS)):
        config = RerankerConfig(
            cache_folder=options.cache, sequence="off", semantic="off", cross_encoder="off", seed=options.seed
        )
        with visits_of(seconds):
            reranker = Reranker(config, verbose=False).fit(trial.interactions, trial.item_frame, users=trial.user_frame)
        lists = reranker.recommend(list(trial.user_ids), k=None, at=trial.moments)
        values = reranker.report().values
        fits[name] = {
            "protocol": values["protocol"],
            "ndcg_on_fold_g": values["ranking"]["fused"],
            "said": values["calibration"],
            "found": JudgedLists.from_result(lists, trial).describe(trial),
        }
    report = {
        "dataset": options.dataset,
        "split": options.split,
        "share_with_look": {name: {"share": share, "n": n} for name, (share, n) in shares.items()},
        "trial": trial.describe(),
        "fits": fits,
        **information,
    }
    write_report(options.out, report)
    rows = [[name, f"{share:.3f}", f"{n:,}"] for name, (share, n) in shares.items()]
    print(table(["decided before looks of", "own target in the history", "users"], rows))
    rows = [
        [
            name,
            f"{fit['ndcg_on_fold_g']:.3f}",
            f"{fit['said']['mean_probability_top_10']:.3f}",
            f"{fit['said']['rate_top_10']:.3f}",
            f"{fit['found']['mean_probability_top_10']:.3f}",
            f"{fit['found']['rate_top_10']:.3f}",
        ]
        for name, fit in fits.items()
    ]
    heads = ["fit, decided", "NDCG@10 on fold G", "mean p, fold G", "taken", "mean p, later", "taken, later"]
    print(table(heads, rows))
    return report


if __name__ == "__main__":
    main()
