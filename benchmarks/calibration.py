"""Do the probabilities hold on users of the future? Calibration of a fitted reranker on a held-out split.

    python -m benchmarks.calibration --dataset online_retail --data-dir DIR --split test --out FILE.json

The reranker is fitted on the past as a shop would (refit included) and retrieves each held-out user's candidates; a
target is an item that the user took at the first visit from the decision on, which is what the probability speaks of.
Where there is real time it speaks of visits as soon after as the fit could see: "retrieved" are the users who come in
that time, "retrieved, whenever they come" are all of the split, some of them long after.
With ``--upstream``, where there is real time, lists of another recommender (co-occurrence, fitted on what it could
know) are shown to the fit as impressions, and its lists of the future are judged with the calibrator of such lists.
There everybody with a past is shown a list, as in the fit, and a target is whatever they take from it as long after as
the fit could see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import fitted_on, run_information, table, trial_parser, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.datasets import Dataset, load_dataset
from llm_rerank.data.frames import id_codes
from llm_rerank.data.splits import before
from llm_rerank.data.times import parse_times
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, TimeCut, Trial, hold_out
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.models.scoring import retrieve
from llm_rerank.recommendation.calibration_report import describe_calibration
from llm_rerank.recommendation.candidates import is_member
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.log import FitLog
from llm_rerank.types import BoolArray, DataReport, IntArray, Interactions, Ragged

LENGTH_OF_UPSTREAM_LISTS = 100


@dataclass(frozen=True)
class JudgedLists:
    """A result frame beside the truth, in the frame's order; all of shape (n_candidates,).

    cases: int64, row of the trial. positive: the candidate is one of the case's targets.
    """

    frame: pd.DataFrame
    cases: IntArray
    positive: BoolArray

    @classmethod
    def from_result(cls, frame: pd.DataFrame, trial: Trial) -> JudgedLists:
        """Look each candidate up among the targets of its user; users that the trial does not ask have none."""
        cases, user_ids = pd.factorize(frame["user_id"])
        asked = id_codes(np.asarray(user_ids, dtype=object), trial.user_ids)
        counts = np.where(asked >= 0, trial.cases.targets.lengths[asked], 0)
        targets = Ragged.from_lengths(trial.cases.targets.take(asked[asked >= 0]).values, counts)
        order = np.argsort(cases, kind="stable")
        codes = id_codes(frame["item_id"], trial.items.ids)
        positive = np.empty(len(frame), dtype=np.bool_)
        lists = Ragged.from_lengths(codes[order], np.bincount(cases).astype(np.int64))
        positive[order] = is_member(lists, targets, len(trial.items))
        return cls(frame, cases.astype(np.int64), positive)

    def describe(self, trial: Trial) -> dict[str, Any]:
        """Judge the frame's probabilities (``describe_calibration``)."""
        users = id_codes(self.frame["user_id"], trial.past.user_ids)
        items = id_codes(self.frame["item_id"], trial.items.ids)
        history_lengths = np.bincount(trial.past.users[trial.past.items >= 0], minlength=trial.past.n_users)
        return describe_calibration(
            self.frame["probability"].to_numpy(),
            self.positive,
            self.cases,
            self.frame["rank"].to_numpy(),
            np.log1p(history_lengths[users]),
            np.log1p(trial.item_support[items]),
        )


def upstream_lists(past: Interactions, trial: Trial, users: IntArray, as_of: int, seed: int) -> pd.DataFrame:
    """Give each user the best items by co-occurrence in the past: user_id, item_id, timestamp, upstream_score."""
    scorer = ItemKNN().fit(past, trial.items, seed=seed)
    times = np.full(len(users), as_of, dtype=np.int64)
    cases = build_cases(past, users, times)
    lists = retrieve(scorer, cases, LENGTH_OF_UPSTREAM_LISTS, exclude=seen_items(past, users, times))
    return pd.DataFrame(
        {
            "user_id": past.user_ids[users[lists.row_of_value]],
            "item_id": trial.items.ids[lists.values],
            "timestamp": as_of,
            "upstream_score": scorer.score(cases.with_candidates(lists)),
        }
    )


def as_long_after(dataset: Dataset, trial: Trial, protocol: TimeCut, seconds: int) -> Trial:
    """Hold out again, with only what users take within so many seconds of the trial's decision as targets."""
    assert trial.at is not None
    times, known, _ = parse_times(dataset.interactions["timestamp"], report=DataReport())
    soon = replace(dataset, interactions=dataset.interactions[known & (times < trial.at + seconds)])
    return hold_out(soon, replace(protocol, cut=str(np.datetime64(trial.at, "s"))), "test")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("calibration", __doc__ or "", dataset="sample")
    parser.add_argument("--upstream", action="store_true", help="also fit and judge lists of another recommender")
    parser.add_argument("--cross-encoder", choices=("auto", "always", "off"), default="off")
    parser.add_argument("--no-refit", action="store_true", help="judge the components that the calibrator was made for")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    protocol = PROTOCOLS.get(options.dataset, LastOut())
    if isinstance(protocol, TimeCut):
        protocol = replace(protocol, first_visit=True)
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, protocol, options.split)
    config = RerankerConfig(
        cache_folder=options.cache,
        cross_encoder=options.cross_encoder,
        refit=not options.no_refit,
        seed=options.seed,
    )
    holdout, impressions = plan_holdout(trial.past, options.seed, FitLog(verbose=False)), None
    if options.upstream:
        shown = before(trial.past, holdout.as_of)
        impressions = upstream_lists(shown, trial, np.unique(shown.users), holdout.as_of, options.seed)
    reranker = fitted_on(trial, config, options.model, impressions=impressions)
    retrieved = reranker.recommend(list(trial.user_ids), k=None, at=trial.moments)
    judged = {"retrieved": JudgedLists.from_result(retrieved, trial).describe(trial)}
    days, seconds = None, int(trial.past.times.max()) - holdout.as_of
    if isinstance(protocol, TimeCut) and holdout.protocol == "time":
        days = seconds / 86_400
        judged["retrieved, whenever they come"] = judged["retrieved"]
        soon = as_long_after(dataset, trial, protocol, seconds)
        of_soon = retrieved[retrieved["user_id"].isin(soon.user_ids)]
        judged["retrieved"] = JudgedLists.from_result(of_soon, soon).describe(soon)
    if options.upstream:
        assert trial.at is not None
        assert isinstance(protocol, TimeCut)
        everybody = np.unique(trial.past.users)
        candidates = upstream_lists(trial.past, trial, everybody, trial.at, options.seed).drop(columns="timestamp")
        later = as_long_after(dataset, trial, replace(protocol, first_visit=False), seconds)
        judged["upstream"] = JudgedLists.from_result(reranker.rerank(candidates, at=trial.at), later).describe(trial)
    report = {
        "dataset": options.dataset,
        "trial": trial.describe(),
        "days_that_the_fit_could_see": days,
        "calibration": judged,
        "calibration_on_fold_g": reranker.report().values["calibration"],
        **information,
    }
    write_report(options.out, report)
    rows = []
    for name, values in judged.items():
        rows.append(
            [
                name,
                "{:.2f} [{:.2f}, {:.2f}]".format(values["slope"], *values["slope_ci95"]),
                f"{values['intercept']:+.2f}",
                f"{values['ece_top_10'] / values['mean_probability_top_10']:.1%}",
                f"{values['ece_top_10_if_perfect'] / values['mean_probability_top_10']:.1%}",
                f"{values['mean_probability_top_10']:.4f}",
                f"{values['rate_top_10']:.4f}",
                "{:+.4f} [{:+.4f}, {:+.4f}]".format(values["brier_skill"], *values["brier_skill_ci95"]),
            ]
        )
    heads = ["lists", "slope [95 %]", "intercept", "ECE of top 10 / mean p", "if perfect", "mean p", "rate"]
    print(table([*heads, "Brier skill [95 %]"], rows))
    return report


if __name__ == "__main__":
    main()
