"""What ranked lists are worth on a trial: metrics a case with intervals, strata of support, ceilings, paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_rerank.evaluation.protocols import Trial
from llm_rerank.metrics import (
    average_precision_at_k,
    best_dcg,
    coverage_at_k,
    hit_matrix,
    hit_rate_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
)
from llm_rerank.statistics import LEAST_FOR_INTERVAL, Interval, bootstrap_interval, holm, paired_difference
from llm_rerank.strata import ITEM_STRATA, NOTHING, USER_STRATA, label, within
from llm_rerank.types import DataError, Ragged

Float64Array = npt.NDArray[np.float64]

SURE = 0.05
"""Adjusted p values below it tell two systems apart."""


@dataclass(frozen=True)
class RankingResult:
    """What one system's lists are worth.

    per_case: metric → float64, shape (n_cases,), in the order of the trial's cases. intervals: metric → mean with its
    95 % bootstrap interval. coverage: share of the catalogue among the first k of any list.
    strata: "user 1-2", "item 0", … → NDCG@k there; None where the stratum is empty. "user 0" is there only where users
    are tested who have had nothing.
    """

    per_case: dict[str, Float64Array]
    intervals: dict[str, Interval]
    coverage: float
    strata: dict[str, Interval | None]
    k: int
    depth: int

    def claimed(self) -> RankingResult:
        """Give the result without bounds that rest on too few users (``Interval.claimed``), those of strata too."""
        return replace(
            self,
            intervals={name: interval.claimed() for name, interval in self.intervals.items()},
            strata={name: None if found is None else found.claimed() for name, found in self.strata.items()},
        )

    def summary(self) -> dict[str, Any]:
        """Return means, "ci95" and "strata" as JSON-ready values."""
        return {
            **{name: interval.mean for name, interval in self.intervals.items()},
            f"coverage@{self.k}": self.coverage,
            "ci95": {name: [interval.low, interval.high] for name, interval in self.intervals.items()},
            "n_cases": len(next(iter(self.per_case.values()))),
            "strata": {
                name: None
                if interval is None
                else {f"ndcg@{self.k}": interval.mean, "ci95": [interval.low, interval.high], "n_cases": interval.n}
                for name, interval in self.strata.items()
            },
        }


def evaluate_ranking(
    ranked: Ragged, trial: Trial, *, k: int = 10, depth: int = 100, n_resamples: int = 2_000, seed: int = 0
) -> RankingResult:
    """Compare ranked lists (item codes, best first, one row a case) with the trial's targets.

    Metrics: ndcg, hr, precision, recall, map at k; mrr over the list's first ``depth``; recall at ``depth``. A target
    that is not on the list scores 0.

    Raises DataError where a list recommends an item that its user has seen: such lists cannot be compared.
    """
    _refuse_seen(ranked, trial)
    targets = trial.cases.targets
    hits, n_targets = hit_matrix(ranked, targets, depth), targets.lengths
    per_case = {
        f"ndcg@{k}": ndcg_at_k(hits, n_targets, k),
        f"hr@{k}": hit_rate_at_k(hits, n_targets, k),
        f"precision@{k}": precision_at_k(hits, n_targets, k),
        f"recall@{k}": recall_at_k(hits, n_targets, k),
        f"map@{k}": average_precision_at_k(hits, n_targets, k),
        "mrr": reciprocal_rank(hits, n_targets),
        f"recall@{depth}": recall_at_k(hits, n_targets, depth),
    }
    intervals = {
        name: bootstrap_interval(values, n_resamples=n_resamples, seed=seed) for name, values in per_case.items()
    }
    strata: dict[str, Interval | None] = {}
    for name, values in _stratified_ndcg(ranked, trial, per_case[f"ndcg@{k}"], k).items():
        strata[name] = bootstrap_interval(values, n_resamples=n_resamples, seed=seed) if len(values) else None
    return RankingResult(per_case, intervals, coverage_at_k(ranked, len(trial.items), k), strata, k, depth)


def _stratified_ndcg(ranked: Ragged, trial: Trial, ndcg: Float64Array, k: int) -> dict[str, Float64Array]:
    """NDCG@k of the cases of each stratum. For items, only targets of that support count as targets."""
    by_stratum = {}
    with_none_had = bool((trial.seen.lengths == 0).any())
    for bounds in (NOTHING, *USER_STRATA) if with_none_had else USER_STRATA:
        by_stratum[f"user {label(bounds)}"] = ndcg[within(trial.seen.lengths, bounds)]
    targets = trial.cases.targets
    support = trial.item_support[targets.values]
    for bounds in ITEM_STRATA:
        kept = within(support, bounds)
        lengths = np.bincount(targets.row_of_value[kept], minlength=len(targets)).astype(np.int64)
        there = np.flatnonzero(lengths)
        few = Ragged.from_lengths(targets.values[kept], lengths).take(there)
        by_stratum[f"item {label(bounds)}"] = ndcg_at_k(hit_matrix(ranked.take(there), few, k), few.lengths, k)
    return by_stratum


def ceiling(candidates: Ragged, trial: Trial, *, k: int = 10) -> dict[str, float]:
    """Say what any reranker of these candidates can reach at most.

    candidates: item codes in any order, one row a case. Returns candidate_recall (mean share of targets among them),
    oracle_ndcg@k and oracle_hr@k (targets among them put first), candidates_per_case.
    """
    targets = trial.cases.targets
    depth = max(1, int(candidates.lengths.max(initial=0)))
    found = hit_matrix(candidates, targets, depth).sum(axis=1)
    return {
        "candidate_recall": float(np.mean(found / targets.lengths)),
        f"oracle_ndcg@{k}": float(np.mean(best_dcg(found, k) / best_dcg(targets.lengths, k))),
        f"oracle_hr@{k}": float(np.mean(found > 0)),
        "candidates_per_case": float(candidates.lengths.mean()),
    }


def compare(
    results: Mapping[str, RankingResult],
    pairs: Sequence[tuple[str, str]],
    *,
    metric: str = "ndcg@10",
    n_resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Test pairs of systems on the same cases; p values are also adjusted for their number (Holm).

    Returns "a vs b" → {metric, difference (a − b), ci95, p, p_holm, n_cases}.
    Raises DataError where a system was not evaluated.
    """
    missing = sorted({name for pair in pairs for name in pair} - set(results))
    if missing:
        raise DataError(f"pairs name {missing}, which were not evaluated; evaluated: {sorted(results)}")
    found = [
        paired_difference(results[a].per_case[metric], results[b].per_case[metric], n_resamples=n_resamples, seed=seed)
        for a, b in pairs
    ]
    adjusted = holm([difference.p for difference in found])
    return {
        f"{a} vs {b}": {
            "metric": metric,
            "difference": difference.mean,
            "ci95": [difference.low, difference.high],
            "p": difference.p,
            "p_holm": float(p_holm),
            "n_cases": difference.n,
        }
        for (a, b), difference, p_holm in zip(pairs, found, adjusted, strict=True)
    }


def claimed_test(test: Mapping[str, Any]) -> dict[str, Any]:
    """Give a test of ``compare`` without its interval (NaN) where it rests on too few users; p holds for any number."""
    return {**test, "ci95": [math.nan, math.nan] if test["n_cases"] < LEAST_FOR_INTERVAL else test["ci95"]}


def verdict(test: Mapping[str, Any]) -> str:
    """Say of a test of ``compare`` how the first system did: "better than", "worse than", "not told apart from".

    Better or worse takes both, an interval without 0 and a p value below ``SURE`` among all tests: the other system is
    often the best of several, picked on this very test. "" where too few users are tested to tell.
    """
    low, high = test["ci95"]
    if test["n_cases"] < LEAST_FOR_INTERVAL:
        return ""
    if test["p_holm"] < SURE and (low > 0 or high < 0):
        return "better than" if low > 0 else "worse than"
    return "not told apart from"


def _refuse_seen(ranked: Ragged, trial: Trial) -> None:
    if len(ranked) != len(trial.cases):
        raise DataError(f"ranked has {len(ranked)} rows for {len(trial.cases)} cases; give one list a case")
    longest = max(1, int(ranked.lengths.max(initial=0)))
    n_seen = int(hit_matrix(ranked, trial.seen, longest).sum())
    if n_seen:
        raise DataError(
            f"ranked holds {n_seen} items that their users have seen; rank with exclude=trial.seen (seen items are "
            "removed in every comparison)"
        )
