"""Measures what histories that come with the question are worth to a reranker that was fitted some time ago.

    python -m benchmarks.fresh_histories --dataset online_retail --data-dir DIR --out FILE.json

A reranker is fitted on the events before a date. On a later date the same reranker is asked twice for the users who
came back in between: knowing of them what it knew when it was fitted, and given their histories up to the question.
The whole catalogue is ranked both times without what each user had before the question, so that the gain is not that
of leaving out what was just bought. A line of its own tells of the users whom the fit did not know at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.times import parse_times
from llm_rerank.evaluation.protocols import Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.recommendation.candidates import is_member
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import paired_difference
from llm_rerank.types import DataError, DataReport, Ragged


def ndcg_of_lists(result: pd.DataFrame, trial: Trial) -> np.ndarray:
    """NDCG@10 of each of the trial's cases, seen items taken out of the lists: float64, shape (n_cases,)."""
    ranked = ranking_from_frame(result, trial)
    new = ~is_member(ranked, trial.seen, len(trial.items))
    lengths = np.bincount(ranked.row_of_value[new], minlength=len(ranked)).astype(np.int64)
    lists = Ragged.from_lengths(ranked.values[new], lengths)
    return ndcg_at_k(hit_matrix(lists, trial.cases.targets, 10), trial.cases.targets.lengths, 10)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fresh_histories", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="online_retail")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--days", type=int, default=50, help="from the last event of the fit to the question")
    parser.add_argument("--encoder", default="none", help="folder or hub name of a sentence encoder, default, or none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split=options.split)
    if trial.at is None:
        raise DataError(f"--dataset {options.dataset!r} has no real time; give one that is cut in time")
    fitted_at = trial.at - options.days * 86_400
    times, users_of_events = trial.past.times, trial.past.user_ids[trial.past.users]
    known = np.isin(trial.user_ids, users_of_events[times < fitted_at])
    back = np.isin(trial.user_ids, users_of_events[times >= fitted_at])
    frame = trial.interactions
    old = frame[parse_times(frame["timestamp"], report=DataReport())[0] < fitted_at]
    config = RerankerConfig(encoder=None if options.encoder == "none" else options.encoder, seed=options.seed)
    reranker = Reranker(config, verbose=False).fit(old, trial.item_frame, users=trial.user_frame)
    users, k = list(trial.user_ids), len(trial.items)
    results = {
        name: reranker.recommend(users, histories=given, at=trial.at, k=k, exclude_seen=False)
        for name, given in (("as fitted", None), ("fresh", frame))
    }
    ndcg = {name: ndcg_of_lists(result, trial) for name, result in results.items()}
    groups = {"known, and back since": known & back, "known, not back since": known & ~back, "new since": ~known}
    report: dict[str, Any] = {"dataset": options.dataset, "split": options.split, "days": options.days, "groups": {}}
    rows = []
    for name, members in groups.items():
        if members.sum() < 2:
            continue
        difference = paired_difference(ndcg["fresh"][members], ndcg["as fitted"][members], seed=options.seed)
        means = {kind: float(values[members].mean()) for kind, values in ndcg.items()}
        report["groups"][name] = {"n": int(members.sum()), "ndcg@10": means, "difference": vars(difference)}
        rows.append(
            [
                name,
                f"{members.sum():,}",
                f"{means['as fitted']:.4f}",
                f"{means['fresh']:.4f}",
                f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
                f"{difference.p:.4f}",
            ]
        )
    write_report(options.out, {**report, **information})
    print(trial.describe())
    print(table(["users", "n", "as fitted", "fresh", "NDCG@10 difference, 95 %", "p"], rows))
    return report


if __name__ == "__main__":
    main()
