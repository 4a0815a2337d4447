"""Does a blend know what to do with users who have done little? Taught by whole histories alone, and by short ones too.

    python -m benchmarks.short_histories --dataset online_retail --data-dir DIR --out FILE.json

Works inside the validation trial's training data as ``blend_cases`` does: the components are fitted on the past of the
fit's own hold-out, the blend on all of its held-out users, once with their whole histories alone, once, as a fit does,
with the weights besides that histories cut short have taught, which fade out by forty events. Both rank the trial's
own cases, later ones, whose histories are cut to their newest none, one, two, five and ten events, and left whole; what
a user had before is left out by all of it. Beside them the most popular items: by buyers ever, and of the last 28 days
where there is a clock. The probabilities of the first ten are set beside the share of them that was taken at the user's
first visit, which is what they speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._halves import fitted_components, fold_of_trial, halves_parser, judged_ndcg
from llm_rerank.config import RerankerConfig
from llm_rerank.data.cases import with_newest
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, TimeCut, hold_out
from llm_rerank.recommendation.candidates import is_member, ranks_in_row
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.stage import Stage, fit_stage
from llm_rerank.statistics import paired_difference
from llm_rerank.types import Ragged

LENGTHS = (0, 1, 2, 5, 10, None)
WHOLE_ALONE, SHORT_TOO = "whole histories alone", "short ones too"
POPULARITY = ("sales_28d", "item_support")


def first_ten(stage: Stage, fold: Fold, first_visit: Ragged, n_items: int) -> dict[str, float]:
    """Mean probability of the first ten of each list, and the share of them that was taken at the first visit."""
    scores = stage.score(fold)
    ten = ranks_in_row(scores, fold.candidates) <= 10
    taken = is_member(fold.candidates, first_visit, n_items)
    probabilities = stage.probability(scores, fold.pair_values)
    return {"probability": float(probabilities[ten].mean()), "taken": float(taken[ten].mean())}


def compare(stages: dict[str, Stage], fold: Fold, first_visit: Ragged, n_items: int, seed: int) -> dict[str, Any]:
    """NDCG@10 of the later cases by both blends and by what is popular, and their differences."""
    ndcg = {name: judged_ndcg(stage.score(fold), fold) for name, stage in stages.items()}
    for name in POPULARITY:
        values = fold.pair_values[:, PAIR_FEATURES.index(name)]
        if np.isfinite(values).any():
            ndcg[name] = judged_ndcg(np.nan_to_num(values), fold)
    popular = max((name for name in ndcg if name in POPULARITY), key=lambda name: float(ndcg[name].mean()))

    def over(other: str) -> list[float]:
        found = paired_difference(ndcg[SHORT_TOO], ndcg[other], seed=seed)
        return [found.mean, found.low, found.high]

    return {
        "n": len(ndcg[SHORT_TOO]),
        "ndcg@10": {name: float(values.mean()) for name, values in ndcg.items()},
        "over_whole_alone": over(WHOLE_ALONE),
        "most_popular": popular,
        "over_most_popular": over(popular),
        "first_ten": {name: first_ten(stage, fold, first_visit, n_items) for name, stage in stages.items()},
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    options = halves_parser("short_histories", __doc__ or "", keep=False).parse_args(arguments)
    information = run_information(options.seed)
    dataset = load_dataset(options.dataset, options.data_dir)
    protocol = PROTOCOLS.get(options.dataset, LastOut())
    trial = hold_out(dataset, protocol, "validation")
    first = replace(protocol, first_visit=True) if isinstance(protocol, TimeCut) else protocol
    of_first_visit = hold_out(dataset, first, "validation")
    assert (of_first_visit.user_ids == trial.user_ids).all()
    config = RerankerConfig(seed=options.seed, cache_folder=options.cache)
    parts = fitted_components(trial, config, with_sequence=not options.without_sequence)
    names, n_items = [component.name for component in parts.components if component.blends], len(parts.items)
    taught = {WHOLE_ALONE: replace(parts.folds.whole, short=None), SHORT_TOO: parts.folds.whole}
    stages = {
        name: fit_stage(fold, names, features=PAIR_FEATURES, n_items=n_items, start=None, seed=options.seed).stage
        for name, fold in taught.items()
    }
    rows = {}
    for length in LENGTHS:
        longest = int(trial.cases.history.lengths.max(initial=0)) if length is None else length
        cut = replace(trial, cases=with_newest(trial.cases, np.full(len(trial.cases), longest, dtype=np.int64)))
        later = fold_of_trial(cut, parts.items, parts.components, config, parts.sentiment)
        rows["whole" if length is None else str(length)] = compare(
            stages, later, of_first_visit.cases.targets, n_items, options.seed
        )
    short = parts.folds.whole.short
    report = {
        "dataset": options.dataset,
        "components": names,
        "n_held_out": len(parts.folds.whole.targets),
        "n_short": 0 if short is None else len(short.case_of),
        "guard": {name: stage.verdict.to_dict() for name, stage in stages.items()},
        "lengths": rows,
        **information,
    }
    write_report(options.out, report)
    cells = [
        [
            length,
            *(f"{row['ndcg@10'][name]:.4f}" for name in (WHOLE_ALONE, SHORT_TOO, row["most_popular"])),
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["over_whole_alone"]),
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["over_most_popular"]),
        ]
        for length, row in rows.items()
    ]
    print(table(["newest events", WHOLE_ALONE, SHORT_TOO, "most popular", "gain", "over most popular"], cells))
    for newest, row in rows.items():
        said = (f"{name} {of['probability']:.4f}, taken {of['taken']:.4f}" for name, of in row["first_ten"].items())
        print(f"{newest}: probability of the first ten by {'; '.join(said)}")
    return report


if __name__ == "__main__":
    main()
