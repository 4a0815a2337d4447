"""Lists that an upstream recommender showed after the cut: its own order beside that of the reranker.

This is the second selection as a shop meets it: the candidates are given, and an order with them. That of the whole
catalogue is in ``comparison.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from llm_rerank.data.impressions import single_items_in_words, validate_impressions
from llm_rerank.data.times import TimeUnit, parse_times
from llm_rerank.evaluation.scales import interval_words
from llm_rerank.metrics import average_precision_at_k, hit_matrix, hit_rate_at_k, ndcg_at_k, recall_at_k
from llm_rerank.recommendation.candidates import is_member, ranked
from llm_rerank.recommendation.decision_facts import lists_not_used
from llm_rerank.recommendation.holdout import drawn
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.upstream import ShownLists, shown_lists
from llm_rerank.statistics import LEAST_FOR_INTERVAL, bootstrap_interval, paired_difference
from llm_rerank.types import DataError, DataReport, Interactions, Items, ObjectArray, Ragged

UPSTREAM, FUSED = "upstream", "fused"
K = 10


@dataclass(frozen=True)
class UpstreamLists:
    """Lists that were shown, parted at a cut. past: rows before it, for a fit; None without any. shown: from it on."""

    past: pd.DataFrame | None
    shown: ShownLists
    cut: int

    @classmethod
    def read(
        cls,
        impressions: pd.DataFrame,
        events: Interactions,
        items: Items,
        cut: int | None,
        time_unit: TimeUnit,
        most_users: int,
        seed: int,
    ) -> Self:
        """Part a table of impressions (``validate_impressions``); of more users than ``most_users`` so many are drawn.

        events: all of them, tested or not. cut: of the trial; None where each user has their own.
        Raises DataError where there is no such moment, or no list with scores from then on.
        """
        if cut is None:
            raise DataError(
                "impressions are compared after one moment in time, and here each user's last new items are held "
                "out; give events dates and a cut such as '2024-05-31', or leave impressions out"
            )
        report = DataReport()
        known = validate_impressions(impressions, items, time_unit=time_unit, report=report)
        late = known[known["time"] >= cut]
        day = pd.to_datetime(cut, unit="s").isoformat()
        if not len(late):
            raise DataError(
                f"impressions end before the cut ({day}), so no list is left to compare; give an earlier cut, or leave "
                "impressions out"
            )
        if late["upstream_score"].isna().all():
            raise DataError(
                f"no row of impressions from the cut on ({day}) has an upstream_score, which tells the order of the "
                "lists; give one, such as minus the position, or leave impressions out"
            )
        users = pd.factorize(late["user_id"])[0]
        late = late[np.isin(users, drawn(np.arange(users.max() + 1), most_users, seed))]
        times, readable, _ = parse_times(impressions["timestamp"], time_unit=time_unit, report=report)
        # read once: in a form that can be taken for nothing else, whatever the unit was
        past = impressions.assign(timestamp=pd.to_datetime(times, unit="s"))[readable & (times < cut)]
        shown = shown_lists(late, events, events.take(events.times < cut), cut)
        return cls(past if len(past) else None, shown, cut)


def judge_shown(
    reranker: Reranker, shown: ShownLists, at: int, item_ids: ObjectArray, *, seed: int = 0
) -> dict[str, Any]:
    """Rerank the lists that were shown, and compare both orders by what was taken from them afterwards, JSON-ready.

    reranker: fitted on what came before ``at``; its histories end there. shown: of ``shown_lists``, item codes of
    item_ids. Items that a user had before are removed from both orders, as in every comparison: they are no targets,
    and an order that does not know them should not lose by that.

    Keys: n_lists; n_candidates, mean a list; n_cases, the lists something was taken from, which alone have a best
    order; n_single, the lists of one item; n_later, rows of users' further lists, which are not read; learned, whether
    the reranker was fitted on earlier lists of that recommender and so reads its scores; not_learned, why it was not
    though it was given some;
    systems, "upstream" and "fused", and of each NDCG, HR, MAP and recall at 10 as {mean, ci95}; test, the paired
    difference of NDCG@10, fused − upstream, as {difference, ci95, p}. The last two are empty without a case, and have
    no bounds (NaN) where cases are too few for them.
    """
    cases = shown.cases
    asked = pd.DataFrame(
        {
            "user_id": shown.user_ids[cases.candidates.row_of_value],
            "item_id": item_ids[cases.candidates.values],
            "upstream_score": shown.scores,
            "place": np.arange(len(shown.scores)),
        }
    )
    ranks = reranker.rerank(asked, at=at).set_index("place")["rank"].sort_index().to_numpy()
    taken = np.flatnonzero(cases.targets.lengths > 0)
    per_case = {}
    for name, scores in ((UPSTREAM, shown.scores), (FUSED, -ranks)):
        lists = _without(ranked(scores, cases.candidates), shown.seen, len(item_ids))
        per_case[name] = _figures(lists.take(taken), cases.targets.take(taken))
    found: dict[str, Any] = {
        "n_lists": len(cases),
        "n_candidates": float(cases.candidates.lengths.mean()),
        "n_cases": len(taken),
        "n_single": int((cases.candidates.lengths == 1).sum()),
        "n_later": shown.n_later,
        "learned": reranker.saved.fitted.upstream_stage is not None,
        "not_learned": lists_not_used(reranker.saved.fitted),
        "systems": {},
        "test": {},
    }
    if len(taken):
        for name, figures in per_case.items():
            intervals = {metric: bootstrap_interval(values, seed=seed).claimed() for metric, values in figures.items()}
            found["systems"][name] = {
                metric: {"mean": interval.mean, "ci95": [interval.low, interval.high]}
                for metric, interval in intervals.items()
            }
        gain = paired_difference(*(per_case[name][f"ndcg@{K}"] for name in (FUSED, UPSTREAM)), seed=seed)
        bounds = [gain.low, gain.high] if gain.n >= LEAST_FOR_INTERVAL else [math.nan, math.nan]
        found["test"] = {"difference": gain.mean, "ci95": bounds, "p": gain.p}
    return found


def _without(lists: Ragged, others: Ragged, n_items: int) -> Ragged:
    """Take out of each row what the same row of ``others`` holds."""
    kept = ~is_member(lists, others, n_items)
    lengths = np.bincount(lists.row_of_value[kept], minlength=len(lists)).astype(np.int64)
    return Ragged.from_lengths(lists.values[kept], lengths)


def _figures(lists: Ragged, targets: Ragged) -> dict[str, np.ndarray]:
    hits, n_targets = hit_matrix(lists, targets, K), targets.lengths
    return {
        f"ndcg@{K}": ndcg_at_k(hits, n_targets, K),
        f"hr@{K}": hit_rate_at_k(hits, n_targets, K),
        f"map@{K}": average_precision_at_k(hits, n_targets, K),
        f"recall@{K}": recall_at_k(hits, n_targets, K),
    }


def shown_in_words(judged: Mapping[str, Any]) -> str:
    """Say in one sentence what the reranker made of the lists that were shown. judged: of ``judge_shown``."""
    said = (
        f"lists that the upstream recommender showed after the cut: {judged['n_lists']:,} users' first ones, "
        f"{judged['n_candidates']:.1f} items each"
    )
    if judged["n_later"]:
        said += f" (without {judged['n_later']:,} rows of their later lists)"
    if parted := single_items_in_words(judged["n_single"], judged["n_lists"]):
        said += f" (warning: {parted})"
    if not judged["n_cases"]:
        return f"{said}; nothing was taken from any, so there is nothing to compare"
    before, after = (judged["systems"][name][f"ndcg@{K}"]["mean"] for name in (UPSTREAM, FUSED))
    test = judged["test"]
    said += (
        f", something taken from {judged['n_cases']:,}: NDCG@10 {before:.4f} in its order, {after:.4f} reranked, "
        f"{interval_words(test['difference'], *test['ci95'], signed=True)}, p = {test['p']:.4f}; the order that was "
        "shown has the advantage of having been shown, so a gain over it is a lower bound and a loss is no evidence"
    )
    if not judged["learned"]:
        why = judged["not_learned"] or "the fit could learn from no earlier lists"
        said += f"; its scores count for nothing there, for {why}"
    return said
