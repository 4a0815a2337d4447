"""Measures what the saved reranker of another shop gives to a shop that has few customers yet.

    python -m benchmarks.start_from --old online_retail --dataset completejourney --data-dir DIR --out FILE.json

The old shop's reranker is fitted on all its events before its cut and saved. The young shop has the events of a few
users, drawn; it is fitted alone, and with ``start_from`` the old one. Both then answer for every user of the young
shop's trial, histories given, on the whole catalogue without seen items. Only settings and the weights of the blend
come from the old shop, none of its items or users.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import paired_difference


def ndcg_of(reranker: Reranker, trial: Trial) -> np.ndarray:
    """NDCG@10 of each of the trial's cases, histories given with the question: float64, shape (n_cases,)."""
    result = reranker.recommend(list(trial.user_ids), histories=trial.interactions, at=trial.at, k=10)
    ranked = ranking_from_frame(result, trial)
    return ndcg_at_k(hit_matrix(ranked, trial.cases.targets, 10), trial.cases.targets.lengths, 10)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_from", description=__doc__.split("\n")[0])
    parser.add_argument("--old", default="online_retail")
    parser.add_argument("--dataset", default="completejourney")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--users", type=int, nargs="+", default=[50, 200], help="users of the young shop")
    parser.add_argument("--draws", type=int, default=1, help="young shops of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    # behaviour only: the question is about settings and blend, and encoding would take most of the time
    config = RerankerConfig(encoder=None, seed=options.seed)
    old, trial = (
        # these two bring their own data
        hold_out(load_dataset(name, None if name in ("sample", "completejourney") else options.data_dir), None, split)
        for name, split in ((options.old, options.split), (options.dataset, options.split))
    )
    report: dict[str, Any] = {"old": options.old, "dataset": options.dataset, "split": options.split, "sizes": {}}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        Reranker(config, verbose=False).fit(old.interactions, old.item_frame, users=old.user_frame).save(f"{place}/old")
        for size in options.users:
            lent, alone = np.zeros(len(trial.user_ids)), np.zeros(len(trial.user_ids))
            for draw in range(options.draws):
                rng = np.random.default_rng([options.seed, size, draw])
                chosen = rng.choice(trial.user_ids, size, replace=False)
                young = trial.interactions[trial.interactions["user_id"].isin(chosen)]
                for start, total in ((f"{place}/old", lent), (None, alone)):
                    reranker = Reranker(config, verbose=False)
                    reranker.fit(young, trial.item_frame, users=trial.user_frame, start_from=start)
                    total += ndcg_of(reranker, trial) / options.draws
            difference = paired_difference(lent, alone, seed=options.seed)
            means = {"alone": float(alone.mean()), "started from the old shop": float(lent.mean())}
            report["sizes"][str(size)] = {"n": len(lent), "ndcg@10": means, "difference": vars(difference)}
            rows.append(
                [
                    f"{size}",
                    *(f"{value:.4f}" for value in means.values()),
                    f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
                    f"{difference.p:.4f}",
                ]
            )
    write_report(options.out, {**report, **information})
    print(trial.describe())
    print(table(["users", "alone", "started", "NDCG@10 difference, 95 %", "p"], rows))
    return report


if __name__ == "__main__":
    main()
