"""A fitted reranker beside its own parts and popularity, on one trial: the table that demo and evaluate show.

The parts are those that the fit tuned on its own hold-out, so they are no straw men. Every published system, tuned for
itself, is in ``benchmarks/ranking.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.config import RerankerConfig
from llm_rerank.data.columns import map_columns
from llm_rerank.data.datasets import Dataset
from llm_rerank.data.frames import applicable, to_pandas
from llm_rerank.data.layouts import as_interactions, as_items
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.data.times import TimeUnit, parse_times
from llm_rerank.data.values import plain
from llm_rerank.evaluation.comparison import RankingResult, ceiling, claimed_test, compare, evaluate_ranking
from llm_rerank.evaluation.protocols import LastOut, TimeCut, Trial, hold_out, rank_catalogue, ranking_from_frame
from llm_rerank.evaluation.scales import interval_words
from llm_rerank.evaluation.shown_lists import UpstreamLists, judge_shown, shown_in_words
from llm_rerank.evaluation.tested_lists import cut_in_words, tested_cut, tested_probabilities
from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import CatalogueScorer, DataError, DataReport, Ragged

DEPTH = 100
MOST_USERS = 20_000
JUDGED = ["user_id", "item_id", "rank", "probability", "kept"]
"""Columns of the reranker's lists that are held against what was taken."""
SHOWN = {
    "HR@10": ("hr@10", 3),
    "MAP@10": ("map@10", 4),
    "recall@10": ("recall@10", 3),
    f"recall@{DEPTH}": (f"recall@{DEPTH}", 3),
}
"""Columns of the tables beside NDCG@10 and coverage: the metric and its decimals."""


@dataclass(frozen=True)
class SystemTable:
    """Systems on one trial. results: by name, the reranker as "fused". tests: fused against each other system.

    Neither has bounds where users are too few for them.

    fused: the reranker's lists, item codes of the trial, best first, ``DEPTH`` a case. probabilities: of whole lists,
    held against what was taken (``tested_probabilities``). cut: of whole lists, what was kept against what was taken
    (``tested_cut``); empty where nothing is cut. shown: of an upstream recommender's lists (``judge_shown``); empty
    where none were given.
    """

    trial: str
    results: Mapping[str, RankingResult]
    tests: Mapping[str, Mapping[str, Any]]
    ceiling: Mapping[str, float]
    fused: Ragged
    probabilities: Mapping[str, Any] = field(default_factory=dict)
    cut: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "trial": self.trial,
            "systems": {name: plain(result.summary()) for name, result in self.results.items()},
            "tests": plain(self.tests),
            "ceiling": dict(self.ceiling),
            "probabilities": plain(self.probabilities),
            "cut": plain(self.cut),
            "shown": plain(self.shown),
        }

    def __str__(self) -> str:
        heads = ["system", "NDCG@10 [95 % interval]", *SHOWN, "coverage@10"]
        rows = [heads]
        for name, result in sorted(self.results.items(), key=lambda pair: pair[1].intervals["ndcg@10"].mean):
            ndcg = result.intervals["ndcg@10"]
            rows.append([name, interval_words(ndcg.mean, ndcg.low, ndcg.high), *shown_figures(result)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        tests = [
            f"{name}: {interval_words(test['difference'], *test['ci95'], signed=True)} NDCG@10, "
            f"p = {test['p_holm']:.4f} (Holm, {len(self.tests)} tests)"
            for name, test in self.tests.items()
        ]
        most = (
            f"ceiling: {self.ceiling['candidate_recall']:.3f} of a user's targets, on average, are among the first "
            f"{DEPTH} of fused; the best order of those would have NDCG@10 {self.ceiling['oracle_ndcg@10']:.3f}"
        )
        more = [cut_in_words(self.cut)] if self.cut else []
        more += [shown_in_words(self.shown)] if self.shown else []
        return "\n".join([self.trial, "", *lines, "", *tests, most, *more])


def shown_figures(result: RankingResult) -> list[str]:
    """Write a system's figures of the columns ``SHOWN``, and its coverage."""
    means = [f"{result.intervals[metric].mean:.{decimals}f}" for metric, decimals in SHOWN.values()]
    return [*means, f"{result.coverage:.3f}"]


@dataclass(frozen=True)
class ShopEvaluation:
    """A shop's trial, whole. reranker: fitted on the trial's past. last_time: of the shop's last event, tested or not.

    ``table`` compares the systems; ``evaluation/report.py`` draws the rest.
    """

    reranker: Reranker
    trial: Trial
    table: SystemTable
    last_time: int


def compare_systems(reranker: Reranker, trial: Trial, *, seed: int = 0) -> SystemTable:
    """Rank the catalogue for the trial's users with the reranker, each of its parts, and popularity.

    reranker: fitted on ``trial.interactions`` and ``trial.item_frame`` and nothing else.
    """
    fused, whole = _recommended(reranker, trial)
    rankings = {"popularity": rank_catalogue(Popularity().fit(trial.past, trial.items, seed=seed), trial, DEPTH)}
    for component in reranker.components:
        if isinstance(component.scorer, CatalogueScorer):
            rankings[component.name] = rank_catalogue(component.scorer, trial, DEPTH)
    rankings["fused"] = fused
    results = {name: evaluate_ranking(ranked, trial, depth=DEPTH, seed=seed) for name, ranked in rankings.items()}
    tests = compare(results, [("fused", name) for name in results if name != "fused"], seed=seed)
    return SystemTable(
        trial.describe(),
        {name: result.claimed() for name, result in results.items()},
        {pair: claimed_test(test) for pair, test in tests.items()},
        ceiling(fused, trial),
        fused,
        tested_probabilities(whole, trial),
        tested_cut(whole, trial),
    )


def _recommended(reranker: Reranker, trial: Trial) -> tuple[Ragged, pd.DataFrame]:
    """Ask for the lists of the trial's users: the first ``DEPTH`` of each as codes, and ``JUDGED`` of them whole."""
    users = list(trial.user_ids)
    whole = reranker.recommend(users, k=None, at=trial.moments)[JUDGED]
    if reranker.config.candidates_per_source >= DEPTH:
        return ranking_from_frame(whole[whole["rank"] <= DEPTH], trial), whole
    # so few a source may not fill the ranking's places; with k more are retrieved than the cut was chosen on
    return ranking_from_frame(reranker.recommend(users, k=DEPTH, at=trial.moments), trial), whole


def evaluate_shop(
    interactions: Any,
    items: Any,
    *,
    users: Any | None = None,
    impressions: Any | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    encoding: str | None = None,
    cut: str | None = None,
    most_users: int = MOST_USERS,
    config: RerankerConfig | None = None,
    verbose: bool = True,
) -> ShopEvaluation:
    """Hold out part of a shop's events, fit on the rest, and compare systems on what was held out.

    interactions, items, users, impressions, columns, time_unit, encoding: as for ``Reranker.fit``. Of impressions the
    fit reads those before the cut; each user's first list from then on is reranked and compared with the order that it
    was shown in. cut: a date, "last" for the new items of each user's last visit, None for the 90 % quantile of times
    where there are real times, else "last". Users who had only looked until then are tested too, as the fit holds them
    out. most_users: test no more than these, drawn at random (a user takes about .1 MiB and a millisecond).
    Raises DataError where the data or the cut leave nothing to test on, or no list to compare.
    """
    config = config or RerankerConfig()
    report = DataReport()
    events = to_pandas(interactions, columns=columns, encoding=encoding, report=report)
    events = as_interactions(events, report, applicable(columns, events))
    catalogue = to_pandas(items, columns=columns, encoding=encoding, report=report)
    catalogue = as_items(catalogue, report, applicable(columns, catalogue))
    attributes = None
    if users is not None:
        attributes = to_pandas(users, columns=columns, encoding=encoding, report=report)
        attributes = map_columns(attributes, "users", applicable(columns, attributes), report)
    # validated here for the kind of time, and so that an error names the shop's own columns
    known_items = validate_items(catalogue, report=report)
    known = validate_interactions(
        events,
        known_items,
        time_unit=time_unit,
        target_events=config.target_events,
        min_rating=config.min_rating,
        report=report,
    )
    if time_unit != "auto":
        events = _with_plain_times(events, time_unit)
    by_user = cut == "last" or (cut is None and known.time_kind == "position")
    protocol = LastOut(visits=True) if by_user else TimeCut(cut)
    dataset = Dataset("your data", events, catalogue, attributes, report.lines())
    held_out = hold_out(
        dataset, protocol, "test", least_history=0, target_events=config.target_events, min_rating=config.min_rating
    )
    trial = drawn(held_out, most_users, config.seed)
    lists = None
    if impressions is not None:
        given = to_pandas(impressions, columns=columns, encoding=encoding, report=report)
        given = map_columns(given, "impressions", applicable(columns, given), report)
        lists = UpstreamLists.read(given, known, known_items, trial.at, time_unit, most_users, config.seed)
    reranker = Reranker(config, verbose=verbose).fit(
        trial.interactions, trial.item_frame, users=trial.user_frame, impressions=None if lists is None else lists.past
    )
    table = compare_systems(reranker, trial, seed=config.seed)
    if lists is not None:
        table = replace(table, shown=judge_shown(reranker, lists.shown, lists.cut, known_items.ids, seed=config.seed))
    return ShopEvaluation(reranker, trial, table, int(known.times.max()))


def drawn(trial: Trial, most_users: int, seed: int) -> Trial:
    """Draw users to test where there are more than ``most_users``; the trial counts those left out.

    Raises DataError where ``most_users`` is no whole number above 0.
    """
    if isinstance(most_users, bool) or not isinstance(most_users, int) or most_users < 1:
        raise DataError(f"most_users is {most_users!r}; it must be a whole number of at least 1")
    n_left_out = len(trial.cases) - most_users
    if n_left_out <= 0:
        return trial
    rows = np.sort(np.random.default_rng(seed).permutation(len(trial.cases))[:most_users])
    reason = f"users beyond the {most_users:,} drawn to be tested"
    return replace(trial.take(rows), removed={**trial.removed, reason: n_left_out})


def _with_plain_times(events: pd.DataFrame, time_unit: TimeUnit) -> pd.DataFrame:
    """Read the timestamps in the unit that was given, into a form that can be taken for nothing else later."""
    times, readable, kind = parse_times(events["timestamp"], time_unit=time_unit, report=DataReport())
    moments = pd.to_datetime(times, unit="s") if kind == "time" else np.unique(times, return_inverse=True)[1]
    return events.assign(timestamp=moments)[readable]
