"""What does the fine-tuned cross-encoder add to all the rest? Log-likelihood and NDCG@10 on held-out users, paired.

    python -m benchmarks.cross_encoder_gain --dataset amazon_scientific --data-dir DIR --split test --out FILE.json

Two fits with the same seed, without and with the cross-encoder (``cross_encoder="always"``). Each user's first 100
candidates by the fit without it are scored by both; where the target is among them, the gain is the difference of
log softmax at the target, in nats. The scores of both are log-odds of a conditional logit, fitted inside each fit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, Trial, hold_out
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import Difference, paired_difference

DEPTH = 100
SUPPORTS = ((0, 5), (5, 40), (40, 10**9))


def per_user(frame: pd.DataFrame, trial: Trial) -> pd.DataFrame:
    """Log softmax at the first target and NDCG@10, a row a user whose target is among the candidates.

    frame: user_id, item_id, rank, score of every candidate.
    """
    codes = {item: code for code, item in enumerate(trial.items.ids)}
    targets = {user: {int(code) for code in trial.cases.targets[row]} for row, user in enumerate(trial.user_ids)}
    rows = []
    for user, part in frame.groupby("user_id", sort=False):
        item_codes = np.array([codes[item] for item in part["item_id"]])
        hit = np.array([code in targets[user] for code in item_codes])
        if not hit.any():
            continue
        scores = part["score"].to_numpy()
        log_total = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
        first = int(np.flatnonzero(hit)[np.argmax(scores[hit])])
        gains = 1.0 / np.log2(part["rank"].to_numpy()[hit] + 1.0)
        ideal = (1.0 / np.log2(np.arange(min(len(targets[user]), 10)) + 2.0)).sum()
        rows.append(
            {
                "user_id": user,
                "target": item_codes[first],
                "log_likelihood": scores[first] - log_total,
                "ndcg": gains[part["rank"].to_numpy()[hit] <= 10].sum() / ideal,
            }
        )
    return pd.DataFrame(rows).set_index("user_id")


def as_dict(difference: Difference) -> dict[str, Any]:
    """JSON-ready values of a paired difference."""
    return {"mean": difference.mean, "ci95": [difference.low, difference.high], "p": difference.p, "n": difference.n}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cross_encoder_gain", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--cache", help="folder that keeps vectors, states and the fine-tuning's checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, PROTOCOLS.get(options.dataset, LastOut()), options.split)
    rerankers, seconds = {}, {}
    for choice in ("off", "always"):
        config = RerankerConfig(cross_encoder=choice, cache_folder=options.cache, seed=options.seed)
        began = time.perf_counter()
        rerankers[choice] = Reranker(config).fit(trial.interactions, trial.item_frame, users=trial.user_frame)
        seconds[choice] = time.perf_counter() - began
    retrieved = rerankers["off"].recommend(list(trial.user_ids), k=DEPTH, at=trial.at)[["user_id", "item_id"]]
    without, with_it = (
        per_user(rerankers[choice].rerank(retrieved, at=trial.at), trial) for choice in ("off", "always")
    )
    gain = paired_difference(
        with_it["log_likelihood"].to_numpy(), without["log_likelihood"].to_numpy(), seed=options.seed
    )
    ndcg = paired_difference(with_it["ndcg"].to_numpy(), without["ndcg"].to_numpy(), seed=options.seed)
    support = np.bincount(trial.past.items[trial.past.items >= 0], minlength=len(trial.items))[without["target"]]
    strata = {}
    for low, high in SUPPORTS:
        inside = (support >= low) & (support < high)
        if inside.sum() > 1:
            strata[f"target support {low} to {high - 1}" if high < 10**9 else f"target support {low} or more"] = (
                as_dict(
                    paired_difference(
                        with_it["log_likelihood"].to_numpy()[inside], without["log_likelihood"].to_numpy()[inside]
                    )
                )
            )
    report = {
        "dataset": options.dataset,
        "trial": trial.describe(),
        "n_users": len(trial.user_ids),
        "n_users_with_target_in_first_100": len(without),
        "log_likelihood_gain": as_dict(gain),
        "log_likelihood_gain_by_support": strata,
        "ndcg@10_difference_over_these_users": as_dict(ndcg),
        "seconds_fit": seconds,
        "seconds_by_step": rerankers["always"].report().values["seconds"],
        "fit_said": rerankers["always"].report().values["lines"],
        **information,
    }
    write_report(options.out, report)
    rows = [
        ["log-likelihood, nats", f"{gain.mean:+.4f}", f"[{gain.low:+.4f}, {gain.high:+.4f}]", f"{gain.p:.4f}"],
        ["NDCG@10 of these users", f"{ndcg.mean:+.4f}", f"[{ndcg.low:+.4f}, {ndcg.high:+.4f}]", f"{ndcg.p:.4f}"],
    ]
    print(table([f"with − without ({len(without):,} users)", "difference", "95 %", "p"], rows))
    print({name: (round(value["mean"], 4), value["n"]) for name, value in strata.items()})
    return report


if __name__ == "__main__":
    main()
