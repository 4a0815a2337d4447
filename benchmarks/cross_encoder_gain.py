"""What does the fine-tuned cross-encoder add to all the rest? Log-likelihood and NDCG@10 on held-out users, paired.

    python -m benchmarks.cross_encoder_gain --dataset amazon_scientific --data-dir DIR --split test --out FILE.json

Two fits with the same seed, without and with the cross-encoder (``cross_encoder="always"``). Each user's first 100
candidates by the fit without it are scored by both; where the target is among them, the gain is the difference of
log softmax at the target, in nats. Before that both scores get one weight each, fitted on one half of these users and
used on the other, then the halves change places: otherwise a blend whose scale is off (the mean of rungs is) would
lose to the same ranking with a better scale. The difference before that is reported beside it, and the one where
both also get a weight for the log of the item's sales: what is left then is no mere shift toward rare items.
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

    def log_likelihood(self, logits: Float64Array) -> Float64Array:
        """Log softmax at each list's best ranked target; logits aligned with ``scores``: float64, shape (n_users,)."""
        starts, row = self.candidates.offsets[:-1], self.candidates.row_of_value
        logits = logits - np.maximum.reduceat(logits, starts)[row]
        return logits[self.first_targets] - np.log(np.add.reduceat(np.exp(logits), starts))

    def cross_fitted(self, half: BoolArray, *further: Float64Array) -> tuple[Float64Array, list[list[float]]]:
        """Logits of the conditional logit over the score and further columns, each half's weights from the other.

        half: bool, shape (n_users,). further: aligned with ``scores``. Returns the logits and both halves' weights.
        """
        design = np.column_stack([self.scores, *further])
        first = np.zeros(len(self.hits), dtype=np.bool_)
        first[self.first_targets] = True
        logits, weights = np.empty(len(self.scores)), []
        for fitted_on in (half, ~half):
            fitted, other = (self.candidates.value_positions(np.flatnonzero(rows)) for rows in (fitted_on, ~fitted_on))
            found = fit_conditional_logit(
                design[fitted],
                self.candidates.take(np.flatnonzero(fitted_on)),
                first[fitted],
                prior=np.eye(design.shape[1])[0],
                penalty=1e-3,
            )
            logits[other] = design[other] @ found
            weights.append(found.tolist())
        return logits, weights


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
    """Lay a paired difference out as a row of the table."""
    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    return [name, f"{difference.mean:+.4f}", interval, f"{difference.p:.4f}"]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cross_encoder_gain", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--cache", help="folder that keeps vectors, states and the fine-tuning's checkpoint")
    parser.add_argument("--sequence", choices=("auto", "off"), default="auto", help="off: the rest without small nets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, PROTOCOLS.get(options.dataset, LastOut()), options.split)
    rerankers, seconds = {}, {}
    for choice in ("off", "always"):
        config = RerankerConfig(
            cross_encoder=choice, sequence=options.sequence, cache_folder=options.cache, seed=options.seed
        )
        began = time.perf_counter()
        rerankers[choice] = Reranker(config).fit(trial.interactions, trial.item_frame, users=trial.user_frame)
        seconds[choice] = time.perf_counter() - began
    retrieved = rerankers["off"].recommend(list(trial.user_ids), k=DEPTH, at=trial.moments)[["user_id", "item_id"]]
    without, with_it = (
        lists_with_target(rerankers[choice].rerank(retrieved, at=trial.moments), trial) for choice in ("off", "always")
    )
    half = np.random.default_rng(options.seed).permutation(len(without.user_ids)) % 2 == 0
    support = np.bincount(trial.past.items[trial.past.items >= 0], minlength=len(trial.items))
    both = (without, with_it)
    scaled, with_support = (
        [lists.cross_fitted(half, *([np.log1p(support[lists.candidates.values])] if column else [])) for lists in both]
        for column in (False, True)
    )
    known = [
        [lists.log_likelihood(logits) for lists, (logits, _) in zip(both, fits, strict=True)]
        for fits in (scaled, with_support)
    ]
    rescaled = known[0]
    gain, gain_beside_support = (paired_difference(b, a, seed=options.seed) for a, b in known)
    unscaled = paired_difference(*(lists.log_likelihood(lists.scores) for lists in both[::-1]), seed=options.seed)
    ndcg = paired_difference(with_it.ndcg(), without.ndcg(), seed=options.seed)
    target_support = support[without.candidates.values[without.first_targets]]
    strata = {}
    for low, high in SUPPORTS:
        inside = (target_support >= low) & (target_support < high)
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
        "weights_without_and_with": [weights for _, weights in scaled],
        "log_likelihood_gain_beside_item_support": as_dict(gain_beside_support),
        "weights_beside_item_support_without_and_with": [weights for _, weights in with_support],
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
        as_row("log-likelihood, both with a weight for item support", gain_beside_support),
        as_row("log-likelihood, nats, as they come", unscaled),
        as_row("NDCG@10 of these users", ndcg),
    ]
    print(table([f"with − without ({len(half):,} users)", "difference", "95 %", "p"], rows))
    print({name: (round(value["mean"], 4), value["n"]) for name, value in strata.items()})
    return report


if __name__ == "__main__":
    main()
