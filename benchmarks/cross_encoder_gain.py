"""What does the fine-tuned cross-encoder add to all the rest? Log-likelihood and NDCG@10 on held-out users, paired.

    python -m benchmarks.cross_encoder_gain --dataset amazon_scientific --data-dir DIR --split test --out FILE.json

Two fits with the same seed, without and with the cross-encoder (``cross_encoder="always"``). Each user's first 100
candidates by the fit without it are scored by both; where the target is among them, the gain is the difference of
log softmax at the target, in nats. Before that both scores get one weight each, fitted on one half of these users and
used on the other, then the halves change places: otherwise a blend whose scale is off (the mean of rungs is) would
lose to the same ranking with a better scale. The difference before that is reported beside it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, Trial, hold_out
from llm_rerank.metrics import ndcg_at_k
from llm_rerank.models.conditional_logit import Float64Array, fit_conditional_logit
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import Difference, paired_difference
from llm_rerank.types import BoolArray, IntArray, ObjectArray, Ragged

DEPTH = 100
SUPPORTS = ((0, 5), (5, 40), (40, 10**9))


@dataclass(frozen=True)
class ScoredLists:
    """Lists that hold a target: a row of ``candidates`` a user, item codes as ranked; scores and hits aligned.

    n_targets: int64, shape (n_users,), the user's targets, in the list or not.
    """

    user_ids: ObjectArray
    candidates: Ragged
    scores: Float64Array
    hits: BoolArray
    n_targets: IntArray

    @property
    def first_targets(self) -> IntArray:
        """Position, in the flat arrays, of each list's best ranked target: int64, shape (n_users,)."""
        positions = np.flatnonzero(self.hits)
        return positions[np.unique(self.candidates.row_of_value[positions], return_index=True)[1]]

    def ndcg(self) -> Float64Array:
        """NDCG@10 of each list: float64, shape (n_users,)."""
        hits = np.zeros((len(self.candidates), 10), dtype=np.bool_)
        for row, (start, end) in enumerate(itertools.pairwise(self.candidates.offsets)):
            first = self.hits[start:end][:10]
            hits[row, : len(first)] = first
        return ndcg_at_k(hits, self.n_targets, 10)

    def log_likelihood(self, scale: Float64Array | float = 1.0) -> Float64Array:
        """Log softmax at each list's best ranked target, of scale × score: float64, shape (n_users,)."""
        starts, row = self.candidates.offsets[:-1], self.candidates.row_of_value
        logits = self.scores * np.broadcast_to(scale, len(self.candidates))[row]
        logits = logits - np.maximum.reduceat(logits, starts)[row]
        return logits[self.first_targets] - np.log(np.add.reduceat(np.exp(logits), starts))

    def cross_fitted_scale(self, half: BoolArray) -> Float64Array:
        """One weight a list, by the conditional logit of the other half: float64, shape (n_users,)."""
        first = np.zeros(len(self.hits), dtype=np.bool_)
        first[self.first_targets] = True
        scale = np.empty(len(half))
        for fitted_on in (half, ~half):
            rows = np.flatnonzero(fitted_on)
            positions = self.candidates.value_positions(rows)
            (weight,) = fit_conditional_logit(
                self.scores[positions, None],
                self.candidates.take(rows),
                first[positions],
                prior=np.ones(1),
                penalty=1e-3,
            )
            scale[~fitted_on] = weight
        return scale


def lists_with_target(frame: pd.DataFrame, trial: Trial) -> ScoredLists:
    """Users of ``frame`` (user_id, item_id, rank, score of every candidate) that have a target among them."""
    codes = {item: code for code, item in enumerate(trial.items.ids)}
    targets = {user: trial.cases.targets[row] for row, user in enumerate(trial.user_ids)}
    users, candidates, scores, hits, n_targets = [], [], [], [], []
    for user, part in frame.sort_values("rank", kind="stable").groupby("user_id", sort=False):
        item_codes = np.array([codes[item] for item in part["item_id"]])
        hit = np.isin(item_codes, targets[user])
        if hit.any():
            users.append(user)
            candidates.append(item_codes)
            scores.append(part["score"].to_numpy(dtype=np.float64))
            hits.append(hit)
            n_targets.append(len(np.unique(targets[user])))
    order = sorted(range(len(users)), key=lambda row: str(users[row]))
    names = np.empty(len(users), dtype=object)
    names[:] = [users[row] for row in order]
    return ScoredLists(
        names,
        Ragged.from_lists([candidates[row] for row in order]),
        np.concatenate([scores[row] for row in order]),
        np.concatenate([hits[row] for row in order]),
        np.array([n_targets[row] for row in order], dtype=np.int64),
    )


def as_dict(difference: Difference) -> dict[str, Any]:
    """JSON-ready values of a paired difference."""
    return {"mean": difference.mean, "ci95": [difference.low, difference.high], "p": difference.p, "n": difference.n}


def as_row(name: str, difference: Difference) -> list[str]:
    """A paired difference as a row of the table."""
    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    return [name, f"{difference.mean:+.4f}", interval, f"{difference.p:.4f}"]


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
        lists_with_target(rerankers[choice].rerank(retrieved, at=trial.at), trial) for choice in ("off", "always")
    )
    half = np.random.default_rng(options.seed).permutation(len(without.user_ids)) % 2 == 0
    scales = [lists.cross_fitted_scale(half) for lists in (without, with_it)]
    rescaled = [lists.log_likelihood(scale) for lists, scale in zip((without, with_it), scales, strict=True)]
    gain = paired_difference(rescaled[1], rescaled[0], seed=options.seed)
    unscaled = paired_difference(with_it.log_likelihood(), without.log_likelihood(), seed=options.seed)
    ndcg = paired_difference(with_it.ndcg(), without.ndcg(), seed=options.seed)
    support = np.bincount(trial.past.items[trial.past.items >= 0], minlength=len(trial.items))
    support = support[without.candidates.values[without.first_targets]]
    strata = {}
    for low, high in SUPPORTS:
        inside = (support >= low) & (support < high)
        if inside.sum() > 1:
            strata[f"target support {low} to {high - 1}" if high < 10**9 else f"target support {low} or more"] = (
                as_dict(paired_difference(rescaled[1][inside], rescaled[0][inside]))
            )
    report = {
        "dataset": options.dataset,
        "trial": trial.describe(),
        "n_users": len(trial.user_ids),
        "n_users_with_target_in_first_100": len(half),
        "log_likelihood_gain": as_dict(gain),
        "scales_without": sorted(set(scales[0].tolist())),
        "scales_with": sorted(set(scales[1].tolist())),
        "log_likelihood_gain_before_rescaling": as_dict(unscaled),
        "log_likelihood_gain_by_support": strata,
        "ndcg@10_difference_over_these_users": as_dict(ndcg),
        "seconds_fit": seconds,
        "seconds_by_step": rerankers["always"].report().values["seconds"],
        "fit_said": rerankers["always"].report().values["lines"],
        **information,
    }
    write_report(options.out, report)
    rows = [
        as_row("log-likelihood, nats, both rescaled", gain),
        as_row("log-likelihood, nats, as they come", unscaled),
        as_row("NDCG@10 of these users", ndcg),
    ]
    print(table([f"with − without ({len(half):,} users)", "difference", "95 %", "p"], rows))
    print({name: (round(value["mean"], 4), value["n"]) for name, value in strata.items()})
    return report


if __name__ == "__main__":
    main()
